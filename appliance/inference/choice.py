"""Which model writes the replies: the one that `coral-reef model load` chose, else `text.model` of appliance.toml.

The newer word counts. A choice is kept together with what appliance.toml said when it was made; when that has changed since, the
owner has spoken again, and the choice is forgotten. So `model load` outlives a restart without writing into the owner's file, and
editing the file always helps.
"""

from __future__ import annotations

import contextlib
import logging

import msgspec

from appliance.files import write_atomically
from appliance.paths import Paths

log = logging.getLogger(__name__)

#: Two names of at most 128 characters.
CHOICE_LIMIT_BYTES = 4096


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`model` was chosen while appliance.toml said `configured`."""

    model: str
    configured: str


def chosen_model(paths: Paths, configured: str) -> str:
    """The model to load when appliance.toml says `configured`."""
    try:
        with paths.model_choice.open("rb") as file:
            choice = msgspec.json.decode(file.read(CHOICE_LIMIT_BYTES), type=Choice)
    except FileNotFoundError:
        return configured
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning("%s: %s; loading text.model of appliance.toml instead", paths.model_choice, error)
        return configured
    return choice.model if choice.configured == configured else configured


def choose_model(paths: Paths, model: str, configured: str) -> None:
    """Remembers that the owner wants `model`, until appliance.toml says another one than now."""
    if model == configured:
        with contextlib.suppress(FileNotFoundError):
            paths.model_choice.unlink()
        return
    paths.model_choice.parent.mkdir(mode=0o750, exist_ok=True)
    write_atomically(
        paths.model_choice, msgspec.json.encode(Choice(model=model, configured=configured)) + b"\n"
    )
