"""Local users, login and power on a machine whose service the appliance is, each asked by whom it will be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from appliance.wire.messages import (
    FirstUser,
    IssueToken,
    Login,
    LoginQuestion,
    Message,
    Power,
    PowerAction,
    UserAdd,
    UserList,
    WorkerRestart,
)
from tests.waiting import wait_for

from .installed import MARKS, SUPERVISOR, enable, main_pid, status_of, wait_until_ready
from .nspawn import Machine, Root, booted_machine

pytestmark = MARKS

PASSWORD = "coral and reef"
CONSOLE = "coral-console"

#: Sends the messages of its arguments over one connection, and prints the answers. A token is tried at the gateway.
ASK = """
import asyncio, msgspec, sys, httpx
from appliance.wire.frames import connect
from appliance.wire.messages import FromSupervisor, IssuedToken, ToSupervisor

async def main():
    connection = await connect("/run/coral-reef/supervisor/control.sock", FromSupervisor, name="console")
    for word in sys.argv[1:]:
        await connection.send(msgspec.json.decode(word, type=ToSupervisor))
        answer = await connection.receive()
        print(msgspec.json.encode(answer).decode(), flush=True)
        if isinstance(answer, IssuedToken):
            headers = {"Authorization": f"Bearer {answer.token}"}
            print(httpx.get("http://127.0.0.1:8080/api/v1/system/tpus", headers=headers, timeout=60).status_code)

asyncio.run(main())
"""


def ask(machine: Machine, *messages: Message, user: str = CONSOLE) -> list[Any]:
    """The answers to messages on one connection of that user's."""
    words = [msgspec.json.encode(message).decode() for message in messages]
    return [json.loads(line) for line in machine.python(ASK, *words, user=user).splitlines()]


def login(name: str = "anna", password: str = PASSWORD) -> Login:
    return Login(request_id="l", name=name, password=password, line="ttyGS0", usb=True)


def power(action: PowerAction) -> Power:
    return Power(request_id="p", action=action)


@pytest.fixture(scope="module")
def running(machine: Machine) -> Machine:
    enable(machine)
    return machine


def test_the_first_user_comes_over_usb(running: Machine) -> None:
    """Nobody but the console may say so; the gateway may not even ask."""
    assert running.out("coral-reef", "user", "list").startswith("No user yet")
    first = FirstUser(request_id="f", name="anna", password=PASSWORD, usb=True)
    for user in ("coral-gateway", "alice"):
        if user == "alice":
            running.run("useradd", "--groups", "coral-reef", "alice")
        (refused,) = ask(running, first, user=user)
        assert (refused["type"], refused["code"]) == ("Failure", "denied")
    question = LoginQuestion(request_id="q", line="ttyGS0")
    issue = IssueToken(request_id="t", name="anna")
    asked, no, refused, logged_in, token, status = ask(
        running, question, login(), msgspec.structs.replace(first, usb=False), first, issue
    )
    assert (asked["first_user"], no["code"], refused["code"]) == (True, "no_users", "not_usb")
    assert (logged_in["name"], logged_in["role"]) == ("anna", "admin")
    assert token["type"] == "IssuedToken"
    assert status == 200
    file = running.root / "var/lib/coral-reef/supervisor/users.json"
    owner = running.out("stat", "--format=%a %U", "/var/lib/coral-reef/supervisor/users.json")
    assert owner == "600 coral-reef"
    assert PASSWORD not in file.read_text()


def test_what_a_console_may_before_and_after_login(running: Machine) -> None:
    add = UserAdd(request_id="a", name="gast", password=PASSWORD, role="guest")
    listing = UserList(request_id="u")
    for denied in ask(
        running, add, listing, IssueToken(request_id="t", name="anna"), power(PowerAction.REBOOT)
    ):
        assert denied["code"] == "denied"
    restart = WorkerRestart(request_id="w", name="text-0")
    for orders in (ask(running, restart), ask(running, restart, user="coral-gateway")):
        assert orders[0]["code"] == "denied"
    wrong, _, done, listed, unknown = ask(running, login(password="wrong"), login(), add, listing, restart)
    assert unknown["code"] == "unknown_worker"
    assert wrong["code"] == "wrong_login"
    assert done["detail"] == "gast may log in, as guest"
    assert [user["name"] for user in listed["users"]] == ["anna", "gast"]
    logged_in, *denied = ask(running, login("gast"), add, listing, restart, power(PowerAction.POWER_OFF))
    assert logged_in["role"] == "guest"
    assert {each["code"] for each in denied} == {"denied"}


def test_root_and_the_group_use_the_command(running: Machine) -> None:
    running.run("sh", "-c", "echo tower of tides | coral-reef user add bert --role user --password-stdin")
    running.run(
        "sh", "-c", "echo tides of a tower | coral-reef user passwd bert --password-stdin", user="alice"
    )
    users = json.loads(running.out("coral-reef", "user", "list", "--json", user="alice"))
    assert [(user["name"], user["role"]) for user in users if user["name"] == "bert"] == [("bert", "user")]
    (logged_in,) = ask(running, login("bert", "tides of a tower"))
    assert logged_in["type"] == "LoggedIn"
    running.run("coral-reef", "user", "remove", "bert", user="alice")
    assert running.run("coral-reef", "user", "remove", "anna", check=False).returncode == 1
    running.run("useradd", "mallory")
    for user in ("mallory", "coral-worker"):
        done = running.run("coral-reef", "user", "list", user=user, check=False)
        assert (done.returncode, done.stdout) == (77, "")
    done = running.run("coral-reef", "user", "list", user="coral-gateway", check=False)
    assert (done.returncode, done.stdout) == (77, "")
    journal = running.journal("all")
    assert "tides" not in journal
    assert PASSWORD not in journal


def test_login_without_gateway_and_database(running: Machine) -> None:
    running.run("systemctl", "stop", "coral-reef-gateway.service", "coral-reef-gateway.socket")
    try:
        (logged_in,) = ask(running, login())
        assert logged_in["type"] == "LoggedIn"
    finally:
        running.run("systemctl", "start", "coral-reef-gateway.socket", "coral-reef-gateway.service")


def test_passwords_are_hashed_under_the_watchdog_s_eyes(running: Machine) -> None:
    """Many at once, from many connections: the supervisor's memory and its answers stay what they were."""
    wait_until_ready(running)
    wrong = [login(f"nobody-{number}", "wrong") for number in range(40)]
    supervisor = main_pid(running, SUPERVISOR)
    codes = {answer["code"] for answer in ask(running, *wrong)}
    assert codes == {"wrong_login", "too_soon"}
    assert main_pid(running, SUPERVISOR) == supervisor
    memory = status_of(supervisor)
    assert int(memory["VmHWM"].split()[0]) < 80 * 1024  # one hash at a time
    assert int(memory["VmRSS"].split()[0]) < 48 * 1024  # and none of it is kept
    (soon,) = ask(running, login())
    assert soon["code"] == "too_soon"
    assert 0 < soon["retry_after_s"] <= 30
    wait_for("the line is heard again", lambda: ask(running, login())[0]["type"] == "LoggedIn", within_s=60)


# --- power: each on a machine of its own ------------------------------------------------------------------------------------


@pytest.fixture
def another(systemd_root: Root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One that the test may switch off."""
    with (
        (tmp_path_factory.mktemp("machine") / "log").open("wb") as log,
        booted_machine(systemd_root, log) as found,
    ):
        enable(found)
        yield found


@pytest.mark.parametrize("action", list(PowerAction))
def test_power(another: Machine, action: PowerAction) -> None:
    """systemd-logind does what an administrator at the console asks, and what polkit allows."""
    rule = another.root / "usr/share/polkit-1/rules.d/coral-reef.rules"
    content = rule.read_text()
    rule.unlink()
    first = FirstUser(request_id="f", name="anna", password=PASSWORD, usb=True)
    _, denied = ask(another, first, power(action))
    assert denied["code"] == "denied"
    assert "polkit does not let this service do it" in denied["message"]
    rule.write_text(content)

    def done() -> bool:
        answer = ask(another, login(), power(action))[1]
        assert answer["type"] == "Done" or answer["code"] == "denied", answer
        return bool(answer["type"] == "Done")

    wait_for("polkit has read its rules again", done)
    wait_for("the machine has ended", lambda: not another.running, within_s=90)
