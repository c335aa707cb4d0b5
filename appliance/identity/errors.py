"""Errors of identity. A key that is not valid is no error: `ApiKeys.verify` answers None; nor is a wrong password.

IdentityError               what failed; `remedy` says what to do about it, `code` what a peer is told
├── UnknownRole             the database names a role that this software does not know
├── UsersUnreadable         the file of local users is there, and broken
├── UsersUnwritable         it cannot be written
├── BadUser                 a name, password or role that no local user can have
├── UserExists, NoSuchUser
├── UsersExist              somebody wanted to make the first user, and there are some
├── LastAdmin               without this user nobody could administer
└── DeviceKeyError          the appliance's own key cannot be used
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class IdentityError(Exception):
    """Anything that goes wrong with who is who. `str()` is the message and the remedy, fit for a person."""

    code = "identity"

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}"


class UnknownRole(IdentityError):
    """A key of a role that newer software invented: it is not honoured with another one."""

    def __init__(self, key_id: str, role: str) -> None:
        super().__init__(
            f"The API key {key_id} has the unknown role {role!r}",
            remedy="Install the newer software, or revoke the key",
        )


class UsersUnreadable(IdentityError):
    """Nobody can log in on a serial line, and nobody can make the first user."""

    code = "users_unreadable"

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} cannot be used: {why}",
            remedy="Restore it from a backup. Who removes it as root begins anew without users",
        )


class UsersUnwritable(IdentityError):
    code = "users_unwritable"

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} cannot be written: {why}", remedy="Nothing was changed; make room on the disk"
        )


class BadUser(IdentityError):
    code = "bad_user"

    def __init__(self, message: str, *, remedy: str = "Choose another one") -> None:
        super().__init__(message, remedy=remedy)


class UserExists(IdentityError):
    code = "user_exists"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is a user {name} already", remedy="Choose another name, or set a password")


class UsersExist(IdentityError):
    code = "users_exist"

    def __init__(self) -> None:
        super().__init__("There are users already", remedy="Log in as one of them")


class NoSuchUser(IdentityError):
    code = "unknown_user"

    def __init__(self, name: str, users: Sequence[str]) -> None:
        super().__init__(f"No user is called {name!r}", remedy=f"There are: {', '.join(users) or 'none'}")


class LastAdmin(IdentityError):
    code = "last_admin"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is the last administrator", remedy="Add another one first")


class DeviceKeyError(IdentityError):
    """Its file is unreadable, open to others or malformed. A new one in its place would make a stranger of the appliance."""
