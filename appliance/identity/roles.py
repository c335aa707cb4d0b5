"""The roles. What each may do is decided where it is done."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """Who somebody is to the appliance."""

    ADMIN = "admin"
    USER = "user"
    GUEST = "guest"
    PEER = "peer"  # another tower
