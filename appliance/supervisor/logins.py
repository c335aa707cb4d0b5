"""Who is logged in where: sessions of the control socket, their tokens, and what each may ask about users and the machine."""

from __future__ import annotations

import asyncio
import hmac
import logging
import pwd
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from appliance.identity.errors import UsersUnreadable
from appliance.identity.roles import Role
from appliance.identity.session_tokens import new_token, token_digest
from appliance.identity.throttle import Throttle
from appliance.identity.users import User, UserFile
from appliance.wire.frames import Peer
from appliance.wire.messages import (
    CheckToken,
    FirstUser,
    IssuedToken,
    IssueToken,
    LocalUser,
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
    UserRole,
    Users,
)

from .errors import Busy, Denied, NotUsb, NoUsers, TooSoon, UnknownToken, WrongLogin

log = logging.getLogger(__name__)

#: Members of the group that may not do by themselves what the others may: the console parses what strangers send over a serial
#: line, the gateway what they send over the network.
CONSOLE_USER = "coral-console"
GATEWAY_USER = "coral-gateway"

#: So many questions may be under way, of one peer and of all consoles; only one hash is computed at a time.
QUESTIONS_LIMIT = 4
CONSOLE_QUESTIONS_LIMIT = 16

#: What is asked here, and nowhere else.
ACCOUNT_MESSAGES = (
    LoginQuestion,
    Login,
    FirstUser,
    IssueToken,
    CheckToken,
    UserList,
    UserAdd,
    UserPassword,
    UserRemove,
    Power,
)

_ROLES: dict[Role, UserRole] = {Role.ADMIN: "admin", Role.USER: "user", Role.GUEST: "guest"}

T = TypeVar("T")
P = ParamSpec("P")


class Standing(Enum):
    """What a peer is by the user that it runs as."""

    OWNER = auto()  # root, or the user that the supervisor runs as
    MEMBER = auto()  # in the group coral-reef: an administrator of this machine
    CONSOLE = auto()  # what the person is who has logged in there
    GATEWAY = auto()


def standing_of(peer: Peer) -> Standing:
    """Of a peer that may talk to the supervisor at all."""
    if peer.is_ours:
        return Standing.OWNER
    for name, standing in ((CONSOLE_USER, Standing.CONSOLE), (GATEWAY_USER, Standing.GATEWAY)):
        try:
            if pwd.getpwnam(name).pw_uid == peer.uid:
                return standing
        except KeyError:
            continue
    return Standing.MEMBER


class Session:
    """A connection to the control socket. `end` ends it; with it ends whoever is logged in there, and their token."""

    def __init__(self, peer: Peer, end: Callable[[], None]) -> None:
        self.standing, self.end = standing_of(peer), end
        self.uid = peer.uid
        self.user: User | None = None
        self.token: tuple[bytes, User] | None = None
        self.questions = 0

    def line(self, claimed: str) -> str:
        """The line that a login is counted for."""
        return claimed if self.standing in (Standing.OWNER, Standing.CONSOLE) else f"user {self.uid}"

    @property
    def administers(self) -> bool:
        """Whether it may do what administrators may."""
        if self.standing is Standing.CONSOLE:
            return self.user is not None and self.user.role is Role.ADMIN
        return self.standing is not Standing.GATEWAY

    @property
    def name(self) -> str:
        """Who it is, for people who read a history: the one who logged in, else the machine's user."""
        if self.user is not None:
            return self.user.name
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"user {self.uid}"

    def require_admin(self) -> None:
        """Denied unless it may do what administrators may."""
        if not self.administers:
            raise Denied(
                "only an administrator may do that" if self.user else "log in as an administrator first"
            )


class Logins:
    """`power` carries a wish to systemd; `unreadable(why)` hears whether the file of users can be read, `why` empty when it can;
    `ended` is called when a token is worth nothing any more."""

    def __init__(
        self,
        file: Path,
        *,
        clock: Callable[[], float],
        power: Callable[[PowerAction], Awaitable[str]],
        unreadable: Callable[[str], None],
        ended: Callable[[], None],
    ) -> None:
        self._users, self._throttle = UserFile(file), Throttle(clock)
        self._power, self._unreadable, self._ended = power, unreadable, ended
        self._sessions: set[Session] = set()
        # One hash at a time, whoever asks: each takes 19 MiB and a core. The loop goes on meanwhile.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="users")
        self._one_login = asyncio.Lock()
        self._console_questions = 0

    async def look(self) -> str:
        """Reads the file and tells whether it can be read; returns a sentence. UsersUnreadable."""
        count = len(await self._in_thread(self._users.all))
        return f"{count} local user{'s' * (count != 1)}"

    def close(self) -> None:
        """Waits for what is being written."""
        self._thread.shutdown()

    # --- sessions -------------------------------------------------------------------------------------------------

    def begin(self, peer: Peer, end: Callable[[], None]) -> Session:
        """A peer has connected."""
        session = Session(peer, end)
        self._sessions.add(session)
        return session

    def over(self, session: Session) -> None:
        """Its connection has ended."""
        self._sessions.discard(session)
        self._forget_token(session)
        session.user = None

    async def answer(self, session: Session, message: Message) -> str | Message:
        """Does what one of ACCOUNT_MESSAGES asks. RequestFailed or IdentityError when it does not."""
        if isinstance(message, CheckToken):
            return self._check_token(message)
        if session.standing is Standing.GATEWAY:
            raise Denied("a gateway has nothing to do with users and power")
        # A console that was taken over must not keep administrators out.
        console = session.standing is Standing.CONSOLE
        many = console and self._console_questions >= CONSOLE_QUESTIONS_LIMIT
        if many or session.questions >= QUESTIONS_LIMIT:
            raise Busy
        session.questions += 1
        self._console_questions += console
        try:
            return await self._carry_out(session, message)
        finally:
            session.questions -= 1
            self._console_questions -= console

    async def _carry_out(self, session: Session, message: Message) -> str | Message:
        match message:
            case LoginQuestion():
                return LoginNeeds(
                    request_id=message.request_id,
                    first_user=not await self._in_thread(self._users.all),
                    retry_after_s=self._throttle.line_wait_s(session.line(message.line)),
                )
            case Login():
                return await self._login(session, message)
            case FirstUser():
                return await self._first_user(session, message)
            case IssueToken():
                return await self._issue_token(session, message)
            case UserList():
                session.require_admin()
                return Users(
                    request_id=message.request_id,
                    users=[_local_user(user) for user in await self._in_thread(self._users.all)],
                )
            case UserAdd():
                session.require_admin()
                user = await self._in_thread(
                    self._users.add, message.name, message.password, Role(message.role)
                )
                return f"{user.name} may log in, as {user.role}"
            case UserPassword():
                if session.user is None or session.user.name != message.name:
                    session.require_admin()
                await self._in_thread(self._users.set_password, message.name, message.password)
                self._end_sessions(message.name, but=session)
                return f"{message.name} has another password"
            case UserRemove():
                session.require_admin()
                await self._in_thread(self._users.remove, message.name)
                self._end_sessions(message.name)
                return f"{message.name} is removed"
            case Power():
                session.require_admin()
                return await self._power(message.action)
        raise AssertionError(message)

    # --- login ----------------------------------------------------------------------------------------------------

    async def _login(self, session: Session, message: Login) -> LoggedIn:
        line = session.line(message.line)
        self._require_patience(
            line, message.name
        )  # before it waits for its turn: who is not heard takes nobody's place
        async with self._one_login:
            self._require_patience(line, message.name)
            user = await self._in_thread(self._users.verify, message.name, message.password)
            if user is None:
                if not await self._in_thread(self._users.all):
                    raise NoUsers
                self._throttle.wrong(line, message.name)
                # Never the name: it may be a password, typed into the wrong field.
                log.warning("a login failed on %s", line)
                raise WrongLogin(self._throttle.wait_s(line, message.name))
            self._throttle.right(line, message.name)
        return self._logged_in(session, message.request_id, user, f"{line} (USB)" if message.usb else line)

    async def _first_user(self, session: Session, message: FirstUser) -> LoggedIn:
        if session.standing is Standing.MEMBER:
            raise Denied("only the console and root may make the first user so; use 'coral-reef user add'")
        if not message.usb:
            raise NotUsb
        user = await self._in_thread(self._users.add_first, message.name, message.password)
        log.info("the first user is %s", user.name)
        return self._logged_in(session, message.request_id, user, "USB")

    def _logged_in(self, session: Session, request_id: str, user: User, line: str) -> LoggedIn:
        self._forget_token(session)
        session.user = user
        log.info("%s has logged in on %s", user.name, line)
        return LoggedIn(request_id=request_id, name=user.name, role=_role(user))

    def _require_patience(self, line: str, name: str) -> None:
        if wait_s := self._throttle.wait_s(line, name):
            raise TooSoon(wait_s)

    # --- tokens ---------------------------------------------------------------------------------------------------

    async def _issue_token(self, session: Session, message: IssueToken) -> IssuedToken:
        user = await self._holder(session, message.name)
        token = new_token()
        digest = token_digest(token)
        assert digest is not None
        self._forget_token(session)
        if session in self._sessions:  # else its connection has ended meanwhile, and nobody hears of this one
            session.token = digest, user
        return IssuedToken(request_id=message.request_id, token=token)

    async def _holder(self, session: Session, name: str) -> User:
        if session.standing is Standing.CONSOLE:
            if session.user is None or session.user.name != name:
                raise Denied(f"{name!r} is not logged in here")
            return session.user
        if session.standing is not Standing.OWNER:
            raise Denied("only the console may ask for a token")
        for user in await self._in_thread(self._users.all):
            if user.name == name:
                return user
        return User(name=name, role=Role.ADMIN, created_at=0.0)  # root, on a machine without such a user

    def _check_token(self, message: CheckToken) -> TokenHolder:
        for session in self._sessions:
            if session.token is not None and hmac.compare_digest(session.token[0], message.digest):
                user = session.token[1]
                return TokenHolder(request_id=message.request_id, name=user.name, role=_role(user))
        raise UnknownToken

    def _forget_token(self, session: Session) -> None:
        if session.token is not None:
            session.token = None
            self._ended()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _end_sessions(self, name: str, *, but: Session | None = None) -> None:
        """Ends what a user has going on, after the answer that is under way."""
        for session in list(self._sessions):
            if session.token is not None and session.token[1].name == name and session is not but:
                self._forget_token(session)
            if session.user is not None and session.user.name == name and session is not but:
                session.user = None
                asyncio.get_running_loop().call_soon(session.end)

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            done = await asyncio.get_running_loop().run_in_executor(
                self._thread, partial(work, *arguments, **keywords)
            )
        except UsersUnreadable as error:
            self._unreadable(str(error))
            raise
        self._unreadable("")
        return done


def _local_user(user: User) -> LocalUser:
    return LocalUser(name=user.name, role=_role(user), created_at=user.created_at)


def _role(user: User) -> UserRole:
    return _ROLES[user.role]
