"""Who comes to a line: login, shell, and all that ends a session. The supervisor's control socket and its users are real."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.identity.roles import Role
from console.login import FORGIVEN_S, NAMELESS_FREE, NAMELESS_LIMIT_S
from tests.waiting import look_until

from .appliance import NAME, PASSWORD, Place, log_in, place
from .person import Person, person_on_a_line

CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture
async def there() -> AsyncIterator[Place]:
    async with place() as found:
        yield found


@pytest.fixture(params=[False, True], ids=["dumb", "smart"])
async def person(request: pytest.FixtureRequest) -> AsyncIterator[Person]:
    with person_on_a_line(smart=request.param) as found:
        yield found


# --- login --------------------------------------------------------------------------------------------------------


async def test_login_and_logout(there: Place, person: Person) -> None:
    there.add_user()
    async with there.serving(person):
        await log_in(person)
        person.type("status\r")
        await person.sees("Coral-Reef 0 is ready")
        await person.sees("coral-reef>")
        person.type("exit\r")
        await person.sees(r"Logged out: goodbye\.")
        await log_in(person)
        person.type(CTRL_D)
        await person.sees(r"Logged out: goodbye\.")
        await person.sees("login: ")
    assert PASSWORD not in person.screen


async def test_a_wrong_password(there: Place) -> None:
    there.add_user()
    with person_on_a_line() as person:
        async with there.serving(person):
            for _ in range(3):
                await person.sees("login: ")
                person.type(f"{NAME}\rnonsense\r")
                await person.sees("(?i)wrong")
            await person.sees(r"wait \d+ s")
            await log_in(person)


async def test_the_first_user_is_made_on_the_usb_line(there: Place) -> None:
    with person_on_a_line() as person:
        async with there.serving(person):
            await person.sees("Nobody can log in yet")
            await person.sees("Name of the administrator: ")
            person.type(f"{NAME}\r")
            await person.sees("New password: ")
            person.type(f"{PASSWORD}\r")
            await person.sees("Once more: ")
            person.type("another one\r")
            await person.sees("two different passwords")
            await person.sees("Name of the administrator: ")
            person.type(f"{NAME}\r{PASSWORD}\r{PASSWORD}\r")
            await person.sees(f"Welcome, {NAME}")
            person.type("user\r")
            await person.sees(f"{NAME} +admin")


async def test_the_first_user_is_not_made_on_another_line(there: Place) -> None:
    with person_on_a_line() as person:
        async with there.serving(person, "ttyS0"):
            await person.sees("Nobody can log in yet. The first user is made on the USB line")
            there.add_user()
            person.type("\r")
            await log_in(person)


async def test_probes_of_modems_are_neither_echoed_nor_taken_for_a_name(there: Place) -> None:
    """ModemManager's first questions, as it sends them: AT thrice, then more, then a binary one."""
    there.add_user()
    with person_on_a_line() as person:
        async with there.serving(person):
            await person.sees("login: ")
            for probe in (
                b"AT\r",
                b"AT\r",
                b"AT\r",
                b"AT+GCAP\r",
                b"ATI\r",
                b"AT+CPIN?\r",
                b"\x7e\x00\x78\xf0\x7e",
            ):
                await person.paste(probe)
            person.type("\r")
            person.type(f"{NAME}\r{PASSWORD}\r")
            await person.sees("Welcome")
            assert "AT" not in person.screen
            assert person.screen.count("Password") == 1


async def test_a_desktop_that_echoes_everything_is_not_talked_to_for_ever(there: Place) -> None:
    """What nobody has set up, as `cat /dev/ttyACM0` has it: prompts come back as input, and would bring about prompts."""
    there.add_user()
    with person_on_a_line() as person:
        person.echo = True
        async with there.serving(person):
            await look_until("it was talked to", lambda: person.screen.count("login: ") > NAMELESS_FREE)
            await look_until("it has fallen silent", lambda: person.quiet_for(1.0))
            person.echo = False
            await look_until("it is heard again", lambda: person.quiet_for(NAMELESS_LIMIT_S + FORGIVEN_S))
            person.type("\x15\r")
            await log_in(person)


async def test_a_supervisor_that_does_not_run_is_waited_for() -> None:
    async with place(listening=False) as there:
        there.add_user()
        with person_on_a_line() as person:
            async with there.serving(person):
                await person.sees("cannot be asked now: the supervisor does not run")
                await there.start()
                await log_in(person)


# --- what ends a session ------------------------------------------------------------------------------------------


async def test_a_session_ends_with_its_cable(there: Place, person: Person) -> None:
    """Unplugged without a hangup, as dwc2 does it: whoever plugs in next stands before a login."""
    there.add_user()
    async with there.serving(person):
        await log_in(person)
        person.type("half a line")
        await person.sees("half a line")
        there.cable.plugged = False
        await look_until("its descriptor is closed", lambda: not open_by_us(person.device))
        person.type("status\r")
        there.cable.plugged = True
        await person.sees(r"Coral-Reef .* \(ttyGS0\)")
        await log_in(person)
        assert "is ready" not in person.screen


async def test_a_session_ends_when_nothing_is_typed(there: Place) -> None:
    there.add_user()
    with person_on_a_line() as person:
        async with there.serving(person, idle_logout_s=0.5):
            await log_in(person)
            person.type("watch\r")
            await person.sees(r"Logged out: nothing was typed for 0 s")
            await person.sees("login: ")


async def test_a_session_ends_with_the_supervisor(there: Place) -> None:
    there.add_user()
    with person_on_a_line() as person:
        async with there.serving(person):
            await log_in(person)
            await there.stop()
            await person.sees("Logged out: the supervisor has ended the session")
            await there.start()
            await log_in(person)


async def test_a_session_ends_when_its_user_is_removed(there: Place) -> None:
    there.add_user()
    there.add_user("boss", PASSWORD)
    with person_on_a_line() as person, person_on_a_line() as boss:
        async with there.serving(person), there.serving(boss, "ttyGS1"):
            await log_in(person)
            await log_in(boss, "boss")
            boss.type(f"user remove {NAME}\r")
            await boss.sees(r"\[y/N\] ")
            boss.type("y\r")
            await boss.sees("is removed")
            await person.sees("Logged out")


async def test_many_sessions_leave_nothing_behind(there: Place, long_run: bool) -> None:
    there.add_user()

    def left() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())

    counts = []
    with person_on_a_line(smart=True) as person:
        async with there.serving(person):
            for _ in range(60 if long_run else 8):
                await log_in(person)
                person.type("help\r")
                await person.sees("log out")
                there.cable.plugged = False
                await look_until("it is closed", lambda: not open_by_us(person.device))
                # This test, and who looks after the line.
                await look_until("its tasks have ended", lambda: len(asyncio.all_tasks()) == 2)
                counts.append(left())
                there.cable.plugged = True
    assert len(set(counts[2:])) == 1, counts


# --- the shell ----------------------------------------------------------------------------------------------------


async def test_who_is_no_administrator_may_look(there: Place) -> None:
    there.add_user()
    there.add_user("bea", PASSWORD, Role.USER)
    with person_on_a_line() as person:
        async with there.serving(person):
            await log_in(person, "bea")
            for order in (
                "tpu reset usb-1-1",
                "worker restart text-1",
                "model load mine",
                "repairs fix x",
                "reboot",
            ):
                person.type(f"{order}\r")
                await person.sees("only an administrator may do that")
            person.type("status\r")
            await person.sees("is ready")


async def test_what_is_asked_wrongly_is_explained(there: Place, person: Person) -> None:
    there.add_user()
    async with there.serving(person):
        await log_in(person)
        for line, answer in (
            ("nonsense", "There is no command 'nonsense'; 'help' lists them"),
            ("tpu nonsense", "it goes like this"),
            ("tpu show", "tpu show TPU"),
            ("tpu show nobody", "no TPU is called 'nobody'"),
            ("status now", "status"),
            ("logs -n many", "logs -f"),
            ('chat "', "a quotation that begins must end"),
            ("model load nobody", "no model is called 'nobody'"),
            ("help nonsense", "there is no command 'nonsense'"),
            ("user add bea emperor", "'emperor' is no role; there are: admin, user, guest"),
            ("chat", "the gateway does not run"),
        ):
            person.type(f"{line}\r")
            await person.sees(answer)
            await person.sees("coral-reef>")


async def test_users_and_their_passwords(there: Place) -> None:
    there.add_user()
    with person_on_a_line() as person:
        async with there.serving(person):
            await log_in(person)
            person.type("user add bea user\r")
            await person.sees("New password of bea: ")
            person.type(f"{PASSWORD}\r{PASSWORD}\r")
            await person.sees("bea may log in, as user")
            person.type("user\r")
            await person.sees("bea +user")
            person.type("user passwd\r")
            await person.sees(f"New password of {NAME}: ")
            person.type("something else entirely\rsomething else entirely\r")
            await person.sees("has another password")
            person.type("exit\r")
            await log_in(person, NAME, "something else entirely")
    assert PASSWORD not in person.screen


async def test_orders(there: Place) -> None:
    there.add_user()
    with person_on_a_line() as person:
        async with there.serving(person):
            await log_in(person)
            person.type("model load mine\r")
            await person.sees("loading mine")
            await person.sees("mine writes the replies now")
            person.type("tpu reset usb-1-1\r")
            await person.sees("usb-1-1 was reset")
            person.type("shutdown\r")
            await person.sees(r"\[y/N\] ")
            person.type("n\r")
            await person.sees("coral-reef>")
            person.type("reboot\ry\r")
            await person.sees("machine that is not its own")


async def test_the_history_outlives_the_session(there: Place, person: Person) -> None:
    there.add_user()
    async with there.serving(person):
        await log_in(person)
        person.type("help exit\r")
        await person.sees("logs out; so does")
        person.type(CTRL_D)
        await person.sees("Logged out")
        await log_in(person)
        person.type("\x1b[A\r")
        await person.sees("logs out; so does")
    assert (there.paths.console_history / NAME).read_text().splitlines()[-1] == "help exit"
    assert (there.paths.console_history / NAME).stat().st_mode & 0o777 == 0o600


async def test_a_megabyte_is_refused_and_nothing_is_lost_afterwards(there: Place, person: Person) -> None:
    there.add_user()
    async with there.serving(person):
        await person.sees("login: ")
        await person.paste(b"nobody" * 170_000)
        await person.sees("bytes were refused")
        await log_in(person)
        await person.paste(b"x" * 1_000_000)
        await person.sees("bytes were refused")
        person.type("status\r")
        await person.sees("is ready")
        await person.paste(b"help exit\r" * 100_000)
        await person.sees("bytes were refused")
        person.type("repairs\r")
        await person.sees(r"Nothing needs a repair\.")


async def test_without_a_login(there: Place) -> None:
    """As on the pseudo-terminal of `coral-reef run`."""
    with person_on_a_line() as person:
        async with there.serving(person, "pts/7", login=False):
            await person.sees("Welcome, ")
            person.type("exit\r")
            await person.sees("Press Enter to begin again")
            person.type("\r")
            await person.sees("Welcome, ")


async def test_the_log_knows_no_passwords_and_no_names_of_strangers(
    there: Place, caplog: pytest.LogCaptureFixture
) -> None:
    there.add_user()
    caplog.set_level("DEBUG")
    with person_on_a_line() as person:
        async with there.serving(person):
            await person.sees("login: ")
            person.type("hunter2-typed-as-a-name\rhunter3\r")
            await log_in(person)
    for secret in ("hunter2", "hunter3", PASSWORD):
        assert secret not in caplog.text


def open_by_us(device: Path) -> bool:
    """Whether the console has the line open: it has more descriptors than the test's own."""
    found = [each for each in Path("/proc/self/fd").iterdir() if _target(each) == str(device)]
    return len(found) > 1


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
