"""The models on disk: what ships with the software and what the owner added, each with its SHA-256 in a manifest."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from appliance.paths import Paths

from .errors import ManifestBroken, ModelCorrupt, ModelUnknown

#: The models that come with the software.
SHIPPED = Path(__file__).parent / "models"

#: A file beside the manifest: no folder, no way out of this one.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}")

#: A manifest longer than this is refused unread.
MANIFEST_LIMIT_BYTES = 1024 * 1024


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model in a manifest. `file` lies beside the manifest; `context_tokens` is the window it was trained for."""

    name: str = msgspec.field()
    kind: str
    file: str
    sha256: str
    size_bytes: int
    context_tokens: int = 0
    description: str = ""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.json`."""

    models: list[Entry]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model and where it lies."""

    entry: Entry
    path: Path
    shipped: bool

    @property
    def name(self) -> str:
        return self.entry.name


def read_manifest(folder: Path) -> list[Entry]:
    """The entries of a folder's manifest; none when there is no manifest. ManifestBroken when it cannot be read."""
    path = folder / "manifest.json"
    try:
        if path.stat().st_size > MANIFEST_LIMIT_BYTES:
            raise ManifestBroken(f"{path}: larger than {MANIFEST_LIMIT_BYTES} bytes")
        entries = msgspec.json.decode(path.read_bytes(), type=Manifest).models
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestBroken(f"{path}: {error}") from error
    for entry in entries:
        if not _PLAIN_NAME.fullmatch(entry.file):
            raise ManifestBroken(f"{path}: {entry.name}: file must be a plain name, not {entry.file!r}")
    return entries


def catalogue(paths: Paths) -> dict[str, Model]:
    """All models by name. One that the owner added comes before one that ships under the same name."""
    found = {}
    for folder, shipped in ((SHIPPED, True), (paths.models, False)):
        for entry in read_manifest(folder):
            found[entry.name] = Model(entry=entry, path=folder / entry.file, shipped=shipped)
    return found


def find(paths: Paths, name: str) -> Model:
    """The model of that name. ModelUnknown names those that there are."""
    models = catalogue(paths)
    if name not in models:
        known = ", ".join(sorted(models)) or "none"
        raise ModelUnknown(f"no model is called {name!r}; there are: {known}")
    return models[name]


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(model: Model) -> None:
    """Reads the whole file and compares. ModelCorrupt when it is missing, short or changed."""
    try:
        size = model.path.stat().st_size
        if size != model.entry.size_bytes:
            raise ModelCorrupt(
                f"{model.path}: {size} bytes, the manifest says {model.entry.size_bytes}: copy it again"
            )
        found = digest(model.path)
    except OSError as error:
        raise ModelCorrupt(f"{model.path}: {error.strerror}: copy it again") from error
    if found != model.entry.sha256:
        raise ModelCorrupt(
            f"{model.path}: SHA-256 is {found}, the manifest says {model.entry.sha256}: copy it again"
        )
