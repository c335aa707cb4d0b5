"""Who may do what with users, logins and tokens: real peers where we can be one, and peers of other users by their numbers."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.identity.errors import BadUser, LastAdmin, NoSuchUser, UserExists, UsersExist, UsersUnreadable
from appliance.identity.session_tokens import new_token, token_digest
from appliance.identity.throttle import LINE_LIMIT_S
from appliance.scheduling.invoke_leases import InvokeLeases
from appliance.scheduling.leases import LeaseTable
from appliance.supervisor import logins as logins_module
from appliance.supervisor.control import ControlSocket
from appliance.supervisor.errors import (
    Busy,
    Denied,
    NotUsb,
    NoUsers,
    PowerUnavailable,
    RequestFailed,
    TooSoon,
    UnknownToken,
    WrongLogin,
)
from appliance.supervisor.logins import CONSOLE_QUESTIONS_LIMIT, QUESTIONS_LIMIT, Logins, Session, Standing
from appliance.telemetry.interfaces import Interfaces
from appliance.wire.errors import Disconnected
from appliance.wire.frames import Connection, Peer, connect
from appliance.wire.messages import (
    CheckToken,
    Done,
    Failure,
    FirstUser,
    FromSupervisor,
    IssuedToken,
    IssueToken,
    LoggedIn,
    Login,
    LoginNeeds,
    LoginQuestion,
    Message,
    Power,
    PowerAction,
    TokenHolder,
    UserAdd,
    UserList,
    UserPassword,
    UserRemove,
    Users,
)
from tests.supervisor.some_logins import some_logins
from tests.supervisor.some_network import some_desk
from tests.supervisor.test_control import ORDERS, STATUS

PASSWORD = "coral and reef"

#: Users that every machine has, for those that only an installed appliance has.
CONSOLE, GATEWAY, MEMBER = (pwd.getpwnam(name).pw_uid for name in ("daemon", "bin", "nobody"))


@dataclass
class Served:
    """Logins, their clock, and what they told."""

    logins: Logins
    file: Path
    now: list[float]
    unreadable: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    closed: list[Session] = field(default_factory=list)

    def session(self, uid: int) -> Session:
        """A connection of that user's."""
        found: list[Session] = []
        session = self.logins.begin(Peer(1, uid, uid), lambda: self.closed.append(found[0]))
        found.append(session)
        return session

    def owner(self) -> Session:
        return self.session(os.geteuid())

    def console(self) -> Session:
        return self.session(CONSOLE)

    async def ask(self, session: Session, message: Message) -> Message | str:
        return await self.logins.answer(session, message)

    async def add(self, name: str, role: str = "admin") -> None:
        await self.ask(self.owner(), UserAdd(request_id="a", name=name, password=PASSWORD, role=role))  # type: ignore[arg-type]

    async def logged_in(self, name: str) -> Session:
        session = self.console()
        await self.ask(session, login(name))
        return session


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(logins_module, "CONSOLE_USER", "daemon")
    monkeypatch.setattr(logins_module, "GATEWAY_USER", "bin")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    now, unreadable, ended = [1000.0], list[str](), list[str]()
    logins = some_logins(
        folder, clock=lambda: now[0], unreadable=unreadable.append, ended=lambda: ended.append("")
    )
    yield Served(logins, folder / "users.json", now, unreadable, ended)
    logins.close()
    shutil.rmtree(folder)


def login(name: str, password: str = PASSWORD, *, line: str = "ttyGS0") -> Login:
    return Login(request_id="a", name=name, password=password, line=line, usb=True)


def first(name: str, *, usb: bool = True) -> FirstUser:
    return FirstUser(request_id="a", name=name, password=PASSWORD, usb=usb)


def check(token: Message | str) -> CheckToken:
    assert isinstance(token, IssuedToken)
    digest = token_digest(token.token)
    assert digest is not None
    return CheckToken(request_id="a", digest=digest)


# --- who is who -----------------------------------------------------------------------------------------------------


def test_standing(served: Served) -> None:
    standings = [served.session(uid).standing for uid in (0, os.geteuid(), CONSOLE, GATEWAY, MEMBER, 64_000)]
    assert standings == [
        Standing.OWNER,
        Standing.OWNER,
        Standing.CONSOLE,
        Standing.GATEWAY,
        Standing.MEMBER,
        Standing.MEMBER,
    ]


def test_a_machine_without_console_and_gateway(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins_module, "CONSOLE_USER", "no-such-user")
    monkeypatch.setattr(logins_module, "GATEWAY_USER", "no-such-user")
    assert served.console().standing is Standing.MEMBER


EVERYTHING: list[Message] = [
    LoginQuestion(request_id="a", line="ttyGS0"),
    login("anna"),
    first("eve"),
    IssueToken(request_id="a", name="anna"),
    UserList(request_id="a"),
    UserAdd(request_id="a", name="eve", password=PASSWORD, role="admin"),
    UserPassword(request_id="a", name="anna", password="eve and anna"),
    UserRemove(request_id="a", name="anna"),
    Power(request_id="a", action=PowerAction.REBOOT),
]
ADMINISTRATION = EVERYTHING[4:]


@pytest.mark.parametrize("message", EVERYTHING, ids=lambda message: type(message).__name__)
async def test_a_gateway_may_nothing(served: Served, message: Message) -> None:
    await served.add("anna")
    before = served.file.read_bytes()
    with pytest.raises(Denied):
        await served.ask(served.session(GATEWAY), message)
    assert served.file.read_bytes() == before


@pytest.mark.parametrize("message", ADMINISTRATION, ids=lambda message: type(message).__name__)
async def test_a_console_may_what_the_person_may(served: Served, message: Message) -> None:
    for name, role in (("anna", "admin"), ("bert", "user"), ("gast", "guest")):
        await served.add(name, role)
    before = served.file.read_bytes()
    with pytest.raises(Denied, match="log in as an administrator first"):
        await served.ask(served.console(), message)
    for name in ("bert", "gast"):
        with pytest.raises(Denied, match="only an administrator may do that"):
            await served.ask(await served.logged_in(name), message)
    assert served.file.read_bytes() == before
    try:
        await served.ask(await served.logged_in("anna"), message)
    except (PowerUnavailable, LastAdmin):  # allowed, and for another reason not done
        return


async def test_members_administer_but_have_no_tokens(served: Served) -> None:
    member = served.session(MEMBER)
    assert await served.ask(member, EVERYTHING[5]) == "eve may log in, as admin"
    assert isinstance(await served.ask(member, UserList(request_id="a")), Users)
    with pytest.raises(PowerUnavailable, match="not its own"):
        await served.ask(member, Power(request_id="a", action=PowerAction.POWER_OFF))
    with pytest.raises(Denied, match="only the console may ask for a token"):
        await served.ask(member, IssueToken(request_id="a", name="eve"))
    with pytest.raises(Denied, match="only the console and root"):
        await served.ask(member, first("eve"))


# --- the first user -------------------------------------------------------------------------------------------------


async def test_the_first_user(served: Served) -> None:
    console = served.console()
    assert await served.ask(console, LoginQuestion(request_id="q", line="ttyGS0")) == LoginNeeds(
        request_id="q", first_user=True, retry_after_s=0
    )
    with pytest.raises(NoUsers, match="there is no user yet"):
        await served.ask(console, login("anna"))
    with pytest.raises(NotUsb):
        await served.ask(console, first("anna", usb=False))
    assert not served.file.exists()
    assert await served.ask(console, first("anna")) == LoggedIn(request_id="a", name="anna", role="admin")
    assert console.user is not None
    assert isinstance(await served.ask(console, IssueToken(request_id="a", name="anna")), IssuedToken)
    with pytest.raises(UsersExist):
        await served.ask(served.console(), first("eve"))
    question = await served.ask(console, LoginQuestion(request_id="q", line="ttyGS0"))
    assert isinstance(question, LoginNeeds)
    assert not question.first_user


async def test_only_one_is_the_first(served: Served) -> None:
    tries = [served.ask(served.console(), first(f"anna-{number}")) for number in range(8)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(each) for each in done].count(LoggedIn) == 1
    assert [type(each) for each in done].count(UsersExist) == 7
    assert len(served.logins._users.all()) == 1


# --- login ------------------------------------------------------------------------------------------------------------


async def test_login(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    await served.add("anna")
    console = served.console()
    with caplog.at_level(logging.DEBUG):
        for name, password in (("anna", "geheim-1"), ("geheim-2", PASSWORD)):
            with pytest.raises(WrongLogin, match=r"^wrong name or password$"):
                await served.ask(console, login(name, password))
        assert console.user is None
        assert await served.ask(console, login("anna")) == LoggedIn(request_id="a", name="anna", role="admin")
    assert "anna has logged in on ttyGS0 (USB)" in caplog.text
    assert "a login failed on ttyGS0" in caplog.text
    assert "geheim" not in caplog.text
    assert PASSWORD not in caplog.text


async def test_guessing_takes_longer_and_longer_and_never_forever(served: Served) -> None:
    await served.add("anna")
    waits = []
    for _ in range(9):
        with pytest.raises(WrongLogin) as wrong:
            await served.ask(served.console(), login("anna", "wrong"))  # each on a connection of its own
        waits.append(wrong.value.retry_after_s)
        if waits[-1]:
            with pytest.raises(TooSoon) as soon:  # not even the right one
                await served.ask(served.console(), login("anna"))
            assert soon.value.retry_after_s == waits[-1]
        question = await served.ask(served.console(), LoginQuestion(request_id="q", line="ttyGS0"))
        assert isinstance(question, LoginNeeds)
        assert question.retry_after_s == waits[-1]
        served.now[0] += waits[-1]
    assert waits == [0, 0, 1, 2, 4, 8, 16, LINE_LIMIT_S, LINE_LIMIT_S]
    assert isinstance(await served.ask(served.console(), login("anna")), LoggedIn)
    with pytest.raises(WrongLogin) as wrong:
        await served.ask(served.console(), login("anna", "wrong"))
    assert wrong.value.retry_after_s == 0


async def test_many_at_once_are_no_way_around_it(served: Served) -> None:
    """Ten connections guess at the same moment: no more passwords are tried than one after the other."""
    await served.add("anna")
    tries = [served.ask(served.console(), login("anna", f"guess number {n}")) for n in range(10)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    kinds = [type(each) for each in done]
    assert (kinds.count(WrongLogin), kinds.count(TooSoon)) == (3, 7)


async def test_lines_are_believed_of_the_console_alone(served: Served) -> None:
    await served.add("anna")
    for number in range(4):
        with pytest.raises((WrongLogin, TooSoon)):
            await served.ask(served.session(MEMBER), login(f"name-{number}", "wrong", line=f"tty{number}"))
    with pytest.raises(TooSoon):
        await served.ask(served.session(MEMBER), login("anna", line="tty9"))
    assert isinstance(await served.ask(served.console(), login("anna", line="tty1")), LoggedIn)


async def test_the_loop_goes_on_while_a_password_is_hashed(served: Served) -> None:
    await served.add("anna")
    turns = 0

    async def look_on(until: asyncio.Task[Message | str]) -> None:
        nonlocal turns
        while not until.done():
            turns += 1
            await asyncio.sleep(0)

    hashing = asyncio.create_task(served.ask(served.console(), login("anna")))
    await look_on(hashing)
    assert turns > 20


async def test_too_many_questions_at_once(served: Served) -> None:
    """Of one peer, and of consoles, however many connections they have; administrators are answered all the same."""
    await served.add("anna")
    consoles = [await served.logged_in("anna") for _ in range(CONSOLE_QUESTIONS_LIMIT // QUESTIONS_LIMIT + 1)]

    async def answers(sessions: list[Session]) -> list[type]:
        asked = [served.ask(session, UserList(request_id="a")) for session in sessions]
        return [type(each) for each in await asyncio.gather(*asked, return_exceptions=True)]

    one = [served.owner()] * (QUESTIONS_LIMIT + 1)
    assert await answers(one) == [Users] * QUESTIONS_LIMIT + [Busy]
    many = [console for console in consoles for _ in range(QUESTIONS_LIMIT)]
    assert await answers([*many, served.owner(), served.session(MEMBER)]) == [
        *[Users] * CONSOLE_QUESTIONS_LIMIT,
        *[Busy] * QUESTIONS_LIMIT,
        Users,
        Users,
    ]
    assert await answers(consoles) == [Users] * len(consoles)


# --- changes end sessions -----------------------------------------------------------------------------------------------


async def test_a_removed_user_is_out_at_once(served: Served) -> None:
    await served.add("anna")
    await served.add("bert", "user")
    bert, anna = await served.logged_in("bert"), await served.logged_in("anna")
    token = await served.ask(bert, IssueToken(request_id="a", name="bert"))
    assert isinstance(await served.ask(served.session(GATEWAY), check(token)), TokenHolder)
    assert await served.ask(anna, UserRemove(request_id="a", name="bert")) == "bert is removed"
    with pytest.raises(UnknownToken):
        await served.ask(served.session(GATEWAY), check(token))
    await asyncio.sleep(0)
    assert served.closed == [bert]
    assert served.ended == [""]
    with pytest.raises(WrongLogin):
        await served.ask(served.console(), login("bert"))


async def test_another_password_ends_the_others(served: Served) -> None:
    await served.add("anna")
    await served.add("bert", "user")
    here, there = await served.logged_in("bert"), await served.logged_in("bert")
    change = UserPassword(request_id="a", name="bert", password="another one")
    assert await served.ask(here, change) == "bert has another password"
    await asyncio.sleep(0)
    assert served.closed == [there]
    assert here.user is not None
    assert there.user is None
    with pytest.raises(WrongLogin):
        await served.ask(served.console(), login("bert"))
    assert isinstance(await served.ask(served.console(), login("bert", "another one")), LoggedIn)


async def test_refusals_of_the_file_reach_the_peer(served: Served) -> None:
    owner = served.owner()
    for message, refusal in (
        (UserRemove(request_id="a", name="anna"), NoSuchUser),
        (UserAdd(request_id="a", name="Anna", password=PASSWORD, role="admin"), BadUser),
        (UserAdd(request_id="a", name="anna", password=PASSWORD, role="guest"), BadUser),
    ):
        with pytest.raises(refusal):
            await served.ask(owner, message)
    await served.add("anna")
    with pytest.raises(UserExists):
        await served.add("anna")
    with pytest.raises(LastAdmin):
        await served.ask(owner, UserRemove(request_id="a", name="anna"))


# --- tokens ---------------------------------------------------------------------------------------------------------------


async def test_a_token_is_worth_what_its_user_is_while_the_connection_is_open(served: Served) -> None:
    await served.add("anna")
    await served.add("gast", "guest")
    gateway, console = served.session(GATEWAY), await served.logged_in("gast")
    with pytest.raises(Denied, match="'anna' is not logged in here"):
        await served.ask(console, IssueToken(request_id="a", name="anna"))
    with pytest.raises(Denied, match="'gast' is not logged in here"):
        await served.ask(served.console(), IssueToken(request_id="a", name="gast"))
    token = await served.ask(console, IssueToken(request_id="a", name="gast"))
    holder = TokenHolder(request_id="a", name="gast", role="guest")
    assert await served.ask(gateway, check(token)) == holder
    with pytest.raises(UnknownToken):
        await served.ask(gateway, check(IssuedToken(request_id="a", token=new_token())))
    later = await served.ask(console, IssueToken(request_id="a", name="gast"))  # takes the place of the first
    with pytest.raises(UnknownToken):
        await served.ask(gateway, check(token))
    assert await served.ask(gateway, check(later)) == holder
    served.logins.over(console)
    with pytest.raises(UnknownToken):
        await served.ask(gateway, check(later))
    assert served.ended == ["", ""]


async def test_another_login_on_the_line_ends_the_token(served: Served) -> None:
    await served.add("anna")
    await served.add("gast", "guest")
    console = await served.logged_in("anna")
    token = await served.ask(console, IssueToken(request_id="a", name="anna"))
    await served.ask(console, login("gast"))
    with pytest.raises(UnknownToken):
        await served.ask(served.session(GATEWAY), check(token))


async def test_who_starts_it_needs_no_user(served: Served) -> None:
    owner = served.owner()
    token = await served.ask(owner, IssueToken(request_id="a", name="owner"))
    assert await served.ask(served.session(GATEWAY), check(token)) == TokenHolder(
        request_id="a", name="owner", role="admin"
    )
    await served.add("anna")
    await served.add("gast", "guest")
    token = await served.ask(owner, IssueToken(request_id="a", name="gast"))
    assert await served.ask(served.session(GATEWAY), check(token)) == TokenHolder(
        request_id="a", name="gast", role="guest"
    )


async def test_no_token_stays_of_a_connection_that_ended_meanwhile(served: Served) -> None:
    await served.add("anna")
    owner = served.owner()
    asking = asyncio.create_task(served.ask(owner, IssueToken(request_id="a", name="anna")))
    await asyncio.sleep(0)
    served.logins.over(owner)
    token = await asking
    with pytest.raises(UnknownToken):
        await served.ask(served.session(GATEWAY), check(token))


# --- a broken file --------------------------------------------------------------------------------------------------------


async def test_a_broken_file_is_told_until_it_is_mended(served: Served) -> None:
    await served.add("anna")
    good = served.file.read_bytes()
    served.file.write_bytes(good[:50])
    served.unreadable.clear()
    for message in (LoginQuestion(request_id="a", line="ttyGS0"), login("anna"), first("eve")):
        with pytest.raises(UsersUnreadable, match="cannot be used"):
            await served.ask(served.console(), message)
    with pytest.raises(UsersUnreadable):
        await served.logins.look()
    assert len(served.unreadable) == 4
    assert all("users.json cannot be used" in each for each in served.unreadable)
    served.file.write_bytes(good)
    assert await served.logins.look() == "1 local user"
    assert served.unreadable[-1] == ""


# --- over the socket ------------------------------------------------------------------------------------------------------


@dataclass
class Socket:
    path: Path

    async def connect(self) -> Connection[Message]:
        return await connect(str(self.path), FromSupervisor, name="console")

    async def ask(self, peer: Connection[Message], message: Message) -> Message:
        async with asyncio.timeout(20):
            await peer.send(message)
            return await peer.receive()


@pytest.fixture
async def listening(served: Served) -> AsyncIterator[Socket]:
    path = served.file.with_name("control.sock")
    control = ControlSocket(
        path,
        LeaseTable(queue_limit=1),
        InvokeLeases(limit=1),
        status=lambda: STATUS,
        traffic=Interfaces().traffic,
        socket_of=lambda _: ("", ""),
        orders=ORDERS,
        logins=served.logins,
        network=some_desk(),
        why_none_is_ready=lambda: "",
        queue_timeout_s=1,
    )
    await control.start()
    yield Socket(path)
    await control.close()


async def test_a_session_is_a_connection(served: Served, listening: Socket) -> None:
    console, gateway = await listening.connect(), await listening.connect()
    assert await listening.ask(console, first("anna")) == LoggedIn(request_id="a", name="anna", role="admin")
    token = await listening.ask(console, IssueToken(request_id="b", name="anna"))
    assert await listening.ask(gateway, check(token)) == TokenHolder(
        request_id="a", name="anna", role="admin"
    )
    await console.close()
    async with asyncio.timeout(20):
        while isinstance(await listening.ask(gateway, check(token)), TokenHolder):
            pass
    refused = await listening.ask(gateway, check(token))
    assert isinstance(refused, Failure)
    assert refused.code == "unknown_token"
    await gateway.close()


async def test_refusals_say_when_to_come_again(listening: Socket) -> None:
    peer = await listening.connect()
    await listening.ask(peer, UserAdd(request_id="a", name="anna", password=PASSWORD, role="admin"))
    refusals = [await listening.ask(peer, login("anna", "wrong")) for _ in range(4)]
    assert [(each.code, each.retry_after_s) for each in refusals if isinstance(each, Failure)] == [
        ("wrong_login", 0),
        ("wrong_login", 0),
        ("wrong_login", 1),
        ("too_soon", 1),
    ]
    await peer.close()


async def test_removing_oneself_is_answered_first(listening: Socket) -> None:
    console, other = await listening.connect(), await listening.connect()
    await listening.ask(other, UserAdd(request_id="a", name="anna", password=PASSWORD, role="admin"))
    await listening.ask(other, UserAdd(request_id="a", name="bert", password=PASSWORD, role="admin"))
    assert isinstance(await listening.ask(console, login("bert")), LoggedIn)
    removed = await listening.ask(console, UserRemove(request_id="a", name="bert"))
    assert removed == Done(request_id="a", detail="bert is removed")
    with pytest.raises(Disconnected):
        await console.receive()
    for peer in (console, other):
        await peer.close()


def test_every_refusal_has_a_code_of_its_own() -> None:
    kinds: list[type[RequestFailed]] = RequestFailed.__subclasses__()
    assert len({kind.code for kind in kinds}) == len(kinds)
