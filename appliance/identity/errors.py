"""Errors of identity. A key that is not valid is no error: `ApiKeys.verify` answers None.

IdentityError               what failed; `remedy` says what to do about it
├── UnknownRole             the database names a role that this software does not know
└── DeviceKeyError          the appliance's own key cannot be used
"""

from __future__ import annotations


class IdentityError(Exception):
    """Anything that goes wrong with who is who. `str()` is the message and the remedy, fit for a person."""

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


class DeviceKeyError(IdentityError):
    """Its file is unreadable, open to others or malformed. A new one in its place would make a stranger of the appliance."""
