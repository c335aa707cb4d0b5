"""Local users: who may log in on a serial line. One small file of the supervisor's, which needs no database."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.files import write_atomically

from .errors import BadUser, LastAdmin, NoSuchUser, UserExists, UsersExist, UsersUnreadable, UsersUnwritable
from .passwords import DECOY, HASH_PATTERN, hash_password, is_outdated, matches, problem_of
from .roles import Role

#: Some 200 bytes each.
USERS_LIMIT = 128
FILE_LIMIT_BYTES = 64 * 1024

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")

#: Roles that a person on a serial line can have.
LOCAL_ROLES = (Role.ADMIN, Role.USER, Role.GUEST)

log = logging.getLogger(__name__)


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may log in. `created_at` in seconds since 1970."""

    name: str
    role: Role
    created_at: float


class _Stored(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=rf"^{_NAME.pattern}\Z")]
    role: Role
    created_at: Annotated[float, Meta(ge=0)]
    password: Annotated[str, Meta(pattern=HASH_PATTERN)]

    def __repr__(self) -> str:
        return f"_Stored({self.name!r})"

    def user(self) -> User:
        return User(name=self.name, role=self.role, created_at=self.created_at)


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1] = 1
    users: Annotated[list[_Stored], Meta(max_length=USERS_LIMIT)]


_decoder = msgspec.json.Decoder(_File)


class UserFile:
    """The users in a file. Every call reads it anew, may hash for 50 ms and wait for the disk; not more than one at a time."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self._path, self._now = path, now

    def all(self) -> list[User]:
        """By name. UsersUnreadable: never is a file that is there but broken taken for one without users."""
        return [stored.user() for _, stored in sorted(self._read().items())]

    def verify(self, name: str, password: str) -> User | None:
        """Who that is; None for an unknown name as for a wrong password, after the same time. UsersUnreadable."""
        users = self._read()
        stored = users.get(name)
        right = matches(password, stored.password if stored else DECOY)
        if stored is None or not right:
            return None
        if is_outdated(stored.password):
            try:
                self._write(users | {name: msgspec.structs.replace(stored, password=hash_password(password))})
            except UsersUnwritable as error:  # a full disk must not lock out whom it could be shown to
                log.warning("the password of a user keeps its old hash: %s", error)
        return stored.user()

    def add(self, name: str, password: str, role: Role) -> User:
        """A new user. BadUser, UserExists, UsersUnreadable, UsersUnwritable."""
        return self._add(self._read(), name, password, role)

    def add_first(self, name: str, password: str) -> User:
        """The first user, an administrator. As `add`, and UsersExist."""
        if users := self._read():
            raise UsersExist
        return self._add(users, name, password, Role.ADMIN)

    def set_password(self, name: str, password: str) -> None:
        """Another password for a user. BadUser, NoSuchUser, UsersUnreadable, UsersUnwritable."""
        users = self._read()
        stored = _find(users, name)
        _check(name, password)
        self._write(users | {name: msgspec.structs.replace(stored, password=hash_password(password))})

    def remove(self, name: str) -> None:
        """One user less. NoSuchUser, LastAdmin, UsersUnreadable, UsersUnwritable."""
        users = self._read()
        removed = _find(users, name)
        rest = {each: stored for each, stored in users.items() if each != name}
        if removed.role is Role.ADMIN and not _has_admin(rest):
            raise LastAdmin(name)
        self._write(rest)

    def _add(self, users: Mapping[str, _Stored], name: str, password: str, role: Role) -> User:
        if not _NAME.fullmatch(name):
            raise BadUser(
                "A name begins with a small letter and holds at most 32 small letters, digits, '-' and '_'"
            )
        if role not in LOCAL_ROLES:
            raise BadUser(f"The role {role} is none of {', '.join(LOCAL_ROLES)}")
        _check(name, password)
        if name in users:
            raise UserExists(name)
        if len(users) == USERS_LIMIT:
            raise BadUser(f"There are {USERS_LIMIT} users already", remedy="Remove one first")
        if not users and role is not Role.ADMIN:
            raise BadUser(
                "the first user must be an administrator", remedy="Add one with the role admin first"
            )
        stored = _Stored(name=name, role=role, created_at=self._now(), password=hash_password(password))
        self._write({**users, name: stored})
        return stored.user()

    def _read(self) -> dict[str, _Stored]:
        try:
            with self._path.open("rb") as file:
                content = file.read(FILE_LIMIT_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UsersUnreadable(self._path, error.strerror or str(error)) from error
        if len(content) > FILE_LIMIT_BYTES:
            raise UsersUnreadable(self._path, f"it is longer than {FILE_LIMIT_BYTES} bytes")
        try:
            listed = _decoder.decode(content).users
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsersUnreadable(self._path, str(error)) from None
        users = {stored.name: stored for stored in listed}
        if len(users) != len(listed):
            raise UsersUnreadable(self._path, "it holds a name twice")
        if any(stored.role not in LOCAL_ROLES for stored in listed):
            raise UsersUnreadable(self._path, "it holds a role that no local user has")
        if not _has_admin(users):
            raise UsersUnreadable(self._path, "it holds no administrator")
        return users

    def _write(self, users: Mapping[str, _Stored]) -> None:
        content = msgspec.json.format(msgspec.json.encode(_File(users=list(users.values()))), indent=1)
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            write_atomically(self._path, content + b"\n", mode=0o600)
        except OSError as error:
            raise UsersUnwritable(self._path, error.strerror or str(error)) from error


def _check(name: str, password: str) -> None:
    if problem := problem_of(password):
        raise BadUser(problem)
    if password.casefold() == name:
        raise BadUser("The password is the name")


def _find(users: Mapping[str, _Stored], name: str) -> _Stored:
    try:
        return users[name]
    except KeyError:
        raise NoSuchUser(name, sorted(users)) from None


def _has_admin(users: Mapping[str, _Stored]) -> bool:
    return any(stored.role is Role.ADMIN for stored in users.values())
