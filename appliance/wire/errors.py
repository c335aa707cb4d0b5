"""Errors of the wire.

WireError
├── FrameError          the peer sent something that is not a frame of ours; the connection is of no more use
│   └── BadMessage      a whole frame that holds no message of the protocol; what follows it can still be read
├── VersionError        the peer speaks another version
├── PeerRefused         the process at one end is not one that may talk to the other
├── Disconnected        the connection ended
└── Refused             the peer understood and said no: `code` and `message`
"""

from __future__ import annotations


class WireError(Exception):
    """Anything that goes wrong between two of our processes."""


class FrameError(WireError):
    """A length beyond the limit, or bytes that are no message of the protocol."""


class BadMessage(FrameError):
    """A frame of the right form whose content is none of the messages that may come here."""


class VersionError(WireError):
    """The peer's protocol version is not ours: one of the two processes needs a restart."""


class PeerRefused(WireError):
    """The user of the one who connects is neither root, nor that of the one who listens, nor in the group `coral-reef`."""


class Disconnected(WireError):
    """The peer went away."""


class Refused(WireError):
    """A request that the peer declined."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
