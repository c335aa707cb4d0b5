"""Who there is to talk to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import tomli

from .errors import UnknownPersona

SHIPPED = Path(__file__).with_name("personas.toml")


class Persona(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A persona: `system` is the prompt that opens its conversations."""

    id: str
    name: str
    role: str
    description: str
    system: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    persona: list[Persona]


def load_personas(path: Path = SHIPPED) -> dict[str, Persona]:
    """The personas of a file by id, in its order."""
    found = msgspec.convert(tomli.loads(path.read_text("utf-8")), _File).persona
    return {persona.id: persona for persona in found}


def find_persona(personas: dict[str, Persona], persona_id: str) -> Persona:
    """The persona of that id. UnknownPersona names those that there are."""
    try:
        return personas[persona_id]
    except KeyError:
        raise UnknownPersona(
            f"no persona is called {persona_id!r}; there are: {', '.join(personas)}"
        ) from None
