"""What a reply expresses, seen from the chat."""

from __future__ import annotations

from typing import Protocol

import msgspec


class Emotion(msgspec.Struct, frozen=True):
    """An emotion, by its name, and how strong it is, from 0 to 1."""

    emotion: str
    intensity: float


class Emotions(Protocol):
    """Reads emotions."""

    async def emotion_of(self, text: str, account: str) -> Emotion | None:
        """What a text expresses; None when nobody can tell, or not soon enough. Raises nothing."""
        ...
