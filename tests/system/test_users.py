"""Local users, login and the tokens of sessions, with all the processes there are."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from appliance.paths import Paths
from appliance.wire.frames import Connection, connect
from appliance.wire.messages import (
    Failure,
    FromSupervisor,
    IssuedToken,
    IssueToken,
    LoggedIn,
    Login,
    Message,
    Power,
    PowerAction,
    UserAdd,
)
from tests.cli.completing import offered
from tests.waiting import ask_until, wait_for

from .booted import COMMAND, ROOT, Booted, booted, command, configure, environment, state_folder
from .terminal import Terminal, terminal

pytestmark = pytest.mark.system

PASSWORD = "coral and reef"
PROCESSES = 2


@pytest.fixture(scope="module")
def appliance() -> Iterator[Booted]:
    with state_folder() as state:
        configure(state, f"[gateway]\nprocesses = {PROCESSES}\n")
        with booted(state) as found:
            yield found


@contextmanager
def in_terminal(appliance: Booted, *words: str) -> Iterator[Terminal]:
    """`coral-reef WORDS` as a person types it."""
    line = [*COMMAND, *words, "--state", str(appliance.state)]
    with terminal(line, cwd=ROOT, env=environment()) as found:
        yield found


def piped(appliance: Booted, password: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`coral-reef WORDS --password-stdin`."""
    return subprocess.run(
        [*COMMAND, *words, "--password-stdin", "--state", str(appliance.state)],
        cwd=ROOT,
        env=environment(),
        input=f"{password}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def names(appliance: Booted) -> list[tuple[str, str]]:
    done = command(appliance, "user", "list", "--json")
    assert done.returncode == 0, done
    return [(user["name"], user["role"]) for user in json.loads(done.stdout)]


def forget_users(appliance: Booted) -> None:
    (appliance.state / "supervisor/users.json").unlink(missing_ok=True)


# --- coral-reef user --------------------------------------------------------------------------------------------------


def test_from_a_terminal(appliance: Booted) -> None:
    forget_users(appliance)
    assert command(appliance, "user", "list").stdout.startswith("No user yet: 'coral-reef user add NAME'")
    with in_terminal(appliance, "user", "add", "anna") as shown:
        shown.expect("Password for anna: ")
        shown.type(f"{PASSWORD}\n")
        shown.expect("The same again: ")
        shown.type(f"{PASSWORD}\n")
        shown.expect("anna may log in, as admin")
        assert shown.wait() == 0
        assert PASSWORD not in shown.screen
    with in_terminal(appliance, "user", "passwd", "anna") as shown:
        shown.expect("Password for anna: ")
        shown.type(f"{PASSWORD}\n")
        shown.expect("The same again: ")
        shown.type("another one\n")
        shown.expect("the two passwords differ; nothing was changed")
        assert shown.wait() == 1
    with in_terminal(appliance, "user", "add", "bert") as shown:
        shown.expect("Password for bert: ")
        shown.type("\x03")
        assert shown.wait() == 130
    assert names(appliance) == [("anna", "admin")]
    assert "anna   admin" in command(appliance, "user", "list").stdout


def test_from_a_script(appliance: Booted) -> None:
    forget_users(appliance)
    assert piped(appliance, PASSWORD, "user", "add", "anna").returncode == 0
    assert piped(appliance, PASSWORD, "user", "add", "gast", "--role", "guest").returncode == 0
    assert names(appliance) == [("anna", "admin"), ("gast", "guest")]
    assert (
        piped(appliance, "tower of tides", "user", "passwd", "gast").stdout == "gast has another password\n"
    )
    for done, status, words in (
        (piped(appliance, "short", "user", "add", "carl"), 1, "at least 8"),
        (piped(appliance, "x" * 9000, "user", "add", "carl"), 1, "at most 256"),
        (piped(appliance, PASSWORD, "user", "add", "Carl"), 1, "begins with a small letter"),
        (piped(appliance, PASSWORD, "user", "add", "anna"), 1, "There is a user anna already"),
        (piped(appliance, PASSWORD, "user", "passwd", "carl"), 1, "There are: anna, gast"),
        (command(appliance, "user", "remove", "anna"), 1, "anna is the last administrator"),
        (piped(appliance, PASSWORD, "user", "add", "carl", "--role", "peer"), 2, "invalid choice: 'peer'"),
    ):
        assert (done.returncode, done.stdout) == (status, ""), done
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    no_terminal = [*COMMAND, "user", "add", "carl", "--state", str(appliance.state)]
    done = subprocess.run(
        no_terminal,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "say --password-stdin" in done.stderr
    assert command(appliance, "user", "remove", "gast").stdout == "gast is removed\n"
    assert PASSWORD not in appliance.log
    assert "tides" not in appliance.log


def test_names_are_completed(appliance: Booted, tmp_path: Path) -> None:
    forget_users(appliance)
    assert piped(appliance, PASSWORD, "user", "add", "anna").returncode == 0
    found = offered(tmp_path, f"coral-reef user passwd --state {appliance.state} ")
    assert "anna" in found


# --- login and tokens ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def console(appliance: Booted) -> AsyncIterator[Connection[Message]]:
    """The console of `make run`: the same user as the supervisor."""
    path = Paths.under(appliance.state).control_socket
    connection = await connect(str(path), FromSupervisor, name="console")
    try:
        yield connection
    finally:
        await connection.close()


async def ask(connection: Connection[Message], message: Message) -> Message:
    async with asyncio.timeout(30):
        await connection.send(message)
        return await connection.receive()


async def token_for(connection: Connection[Message], name: str) -> dict[str, str]:
    issued = await ask(connection, IssueToken(request_id="t", name=name))
    assert isinstance(issued, IssuedToken)
    return {"Authorization": f"Bearer {issued.token}"}


async def statuses(appliance: Booted, headers: dict[str, str]) -> dict[int, set[int]]:
    """What each gateway process answers; a connection each time, until all have been asked."""
    found: dict[int, set[int]] = {}
    for _ in range(200):
        async with (
            httpx.AsyncClient(base_url=appliance.url, headers=headers, trust_env=False) as client,
            client.stream("GET", "/api/v1/system/tpus") as response,
        ):
            gateway = await asyncio.to_thread(appliance.gateway_of, response)
            found.setdefault(gateway, set()).add(response.status_code)
        if len(found) == PROCESSES:
            break
    return found


async def test_every_gateway_honours_a_token_until_its_session_ends(appliance: Booted) -> None:
    forget_users(appliance)
    async with console(appliance) as connection:
        add = UserAdd(request_id="a", name="anna", password=PASSWORD, role="admin")
        await ask(connection, add)
        login = Login(request_id="l", name="anna", password=PASSWORD, line="ttyGS0", usb=True)
        assert await ask(connection, login) == LoggedIn(request_id="l", name="anna", role="admin")
        headers = await token_for(connection, "anna")
        served = await statuses(appliance, headers)
        assert len(served) == PROCESSES
        assert set.union(*served.values()) == {200}

    async def ended() -> bool:
        refused = await statuses(appliance, headers)
        return len(refused) == PROCESSES and set.union(*refused.values()) == {401}

    await ask_until("every gateway has forgotten it", ended)


async def test_a_supervisor_that_restarts_knows_no_token(appliance: Booted) -> None:
    async with console(appliance) as connection:
        headers = await token_for(connection, "owner")
        assert set.union(*(await statuses(appliance, headers)).values()) == {200}
        (supervisor,) = appliance.pids("supervisor")
        os.kill(supervisor, signal.SIGKILL)

    async def ended() -> bool:
        refused = await statuses(appliance, headers)
        return len(refused) == PROCESSES and set.union(*refused.values()) == {401}

    await ask_until("it is worth nothing", ended, within_s=60)
    await asyncio.to_thread(appliance.wait_until_healthy)


async def test_no_power_over_a_machine_that_is_not_its_own(appliance: Booted) -> None:
    async with console(appliance) as connection:
        for action in PowerAction:
            refused = await ask(connection, Power(request_id="p", action=action))
            assert isinstance(refused, Failure)
            assert refused.code == "power_unavailable"
            assert "stop it with Ctrl-C" in refused.message


# --- a broken file ----------------------------------------------------------------------------------------------------------


def test_a_broken_file_is_a_repair(appliance: Booted) -> None:
    forget_users(appliance)
    assert piped(appliance, PASSWORD, "user", "add", "anna").returncode == 0
    file = appliance.state / "supervisor/users.json"
    good = file.read_bytes()
    file.write_bytes(good[:40])
    done = piped(appliance, PASSWORD, "user", "add", "eve")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{file} cannot be used: " in done.stderr
    done = command(appliance, "repair", "list")
    assert "coral-reef repair fix users_unreadable:file" in done.stdout
    assert command(appliance, "repair", "fix", "users_unreadable:file").returncode == 1
    # One that starts with it says so before anybody asks.
    (supervisor,) = appliance.pids("supervisor")
    os.kill(supervisor, signal.SIGKILL)
    appliance.wait_until_gone([supervisor])
    appliance.wait_until_healthy()
    wait_for("it is told again", lambda: "users_unreadable" in command(appliance, "repair", "list").stdout)
    file.write_bytes(good)
    assert command(appliance, "repair", "fix", "users_unreadable:file").stdout == "1 local user\n"
    assert "users_unreadable" not in command(appliance, "repair", "list").stdout
    assert names(appliance) == [("anna", "admin")]
