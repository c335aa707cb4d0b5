"""Errors of the console.

ConsoleError
├── LineLost          the line is gone: unplugged, hung up, or it cannot be opened
└── CommandFailed     what a person asked for cannot be done; the message says why and what to do
"""

from __future__ import annotations


class ConsoleError(Exception):
    """Anything that goes wrong between a person and the appliance."""


class LineLost(ConsoleError):
    """Nobody can be at the other end any more."""


class CommandFailed(ConsoleError):
    """The answer of a command that could not do its work, in a sentence."""
