"""`configure` and `net` on a line, before a network that takes every text."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from appliance.config.keys import continuations, keys_at, values_at
from appliance.identity.roles import Role
from console.commands.configure import complete, masked
from tests.supervisor.some_network import TEXT

from .appliance import Place, log_in, place
from .person import Person, person_on_a_line

CTRL_D = "\x04"


@pytest.fixture
async def there() -> AsyncIterator[Place]:
    async with place() as found:
        found.add_user()
        yield found


@pytest.fixture(params=[False, True], ids=["dumb", "smart"])
async def person(request: pytest.FixtureRequest) -> AsyncIterator[Person]:
    with person_on_a_line(smart=request.param) as found:
        yield found


async def test_from_set_to_commit(there: Place, person: Person) -> None:
    async with there.serving(person):
        await log_in(person)
        person.type("configure\r")
        await person.sees("configure>")
        person.type("set interfaces.primary.ip 10.0.0.3\r")
        await person.sees("configure>")
        person.type("diff\r")
        await person.sees("-  primary: {type: ethernet, ip: 10.0.0.2}")
        await person.sees("change primary to 10.0.0.3")
        assert there.network.file == TEXT
        person.type("commit\r")
        await person.sees("done")
        person.type("exit\r")
        await person.sees("coral-reef>")
    assert there.network.file == TEXT.replace("10.0.0.2", "10.0.0.3")
    assert there.network.past()[0].by == "anna"


async def test_for_a_time(there: Place) -> None:
    with person_on_a_line() as person:
        async with there.serving(person):
            await log_in(person)
            person.type("configure\rset mode server\rcommit confirmed 120\r")
            await person.sees("it goes back in 120 s")
            person.type("confirm\r")
            await person.sees("done")
            person.type("confirm\r")
            await person.sees("nothing waits for a confirmation")
            person.type("set mode local\rcommit confirmed\r")
            await person.sees("it goes back in 60 s")
            person.type("exit\rnet cancel\r")
            await person.sees("everything is as it was before")
    assert there.network.file == TEXT.replace("local", "server")


async def test_back_and_away(there: Place) -> None:
    with person_on_a_line() as person:
        async with there.serving(person):
            await log_in(person)
            person.type("configure\rset mode server\rcommit\rrollback 1\rcommit\rhistory\r")
            await person.sees("at the start")
            person.type("delete interfaces.primary\rexit\r")
            await person.sees("Leave without 'commit'")
            person.type("n\r")
            await person.sees("configure>")
            person.type("discard\rshow\r")
            await person.sees("the SFP")
            person.type(CTRL_D)
            await person.sees("coral-reef>")
    assert there.network.file == TEXT


async def test_what_is_wrong_is_said(there: Place) -> None:
    with person_on_a_line() as person:
        async with there.serving(person):
            await log_in(person)
            person.type("configure\r")
            for typed, said in (
                ("set mode.x 1", "stands behind something that is no mapping"),
                ("delete vlans", "vlans is not set"),
                ("commit confirmed soon", "commit, or commit confirmed"),
                ("commit 'x", "commit, or commit confirmed"),
                ("rollback 7", "there is no revision 7"),
                ("nonsense", "set PATH VALUE"),
                ("set mode hub", "configure>"),
                ("commit", 'network.yaml:2: mode: is "hub", expected one of local'),
            ):
                person.type(f"{typed}\r")
                await person.sees(said)
    assert there.network.file == TEXT


async def test_the_rear_panel_and_the_history(there: Place, person: Person) -> None:
    async with there.serving(person):
        await log_in(person)
        person.type("net\r")
        await person.sees("10 Gbit/s")
        await person.sees("10.0.0.2/24")
        person.type("net history\r")
        await person.sees("at the start")
        person.type("net firewall\r")
        await person.sees("There is no firewall")


async def test_who_is_no_administrator(there: Place) -> None:
    there.add_user("bob", role=Role.USER)
    with person_on_a_line() as person:
        async with there.serving(person):
            await log_in(person, "bob")
            person.type("configure\r")
            await person.sees("only an administrator")
            person.type("net\r")
            await person.sees("10.0.0.2/24")
            person.type("net history\r")
            await person.sees("only an administrator")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "wifi: {ssid: a, password: swordfish, hidden: true}\nmode: x\n",
            "wifi: {ssid: a, password: ********\nmode: x\n",
        ),
        ("turn_secret: 'x y, z'\nmode: x\n", "turn_secret: ********\nmode: x\n"),
        ('password: "abc,de\\"f}ghi"   # mine\n', "password: ********   # mine\n"),
        ("password: |\n  one\n\n  two\nmode: x\n", "password: ********\nmode: x\n"),
        ("password:\n  hidden\nmode: x\n", "password:\n  ********\nmode: x\n"),
        ("credential: ${NAME}\n", "credential: ${NAME}\n"),
        ("a: {password: ${X}, b: 1}\n", "a: {password: ${X}, b: 1}\n"),
        ("password: ${X}and more\n", "password: ********\n"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_completion() -> None:
    assert complete("se") == ["set"]
    assert complete("set int") == ["interfaces"]
    assert complete("set interfaces.pr") == ["interfaces.primary"]
    assert "interfaces.primary.ip" in complete("set interfaces.primary.i")
    assert complete("set interfaces.primary.dhcp t") == ["true"]
    assert complete("set mode s") == ["server"]
    assert "vlans[0].parent" in continuations("vlans[0].p")
    assert values_at("vlans[0].use") == ["management", "api", "cluster", "storage", "none"]
    assert keys_at(("mode",)) == []
    assert continuations("nothing.x") == []
    assert values_at("..") == []
