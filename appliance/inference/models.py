"""The models on disk: what ships with the software and what the owner added, each with its SHA-256 in a manifest."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
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

#: A file changed twice within a tick of its clock (4 ms, on some file systems 2 s) may look the same: a manifest is remembered
#: only when its last change is longer ago than this.
SETTLED_NS = 3_000_000_000

#: Adapters that a worker loads with its model; all of them are named in one frame.
ADAPTERS_LIMIT = 16

CHUNK_BYTES = 1024 * 1024

#: Called with the bytes done so far.
Progress = Callable[[int], None]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model in a manifest. `file` lies beside the manifest; `context_tokens` is the window it was trained for.

    An adapter, of the kind `adapter`, changes the model `base`. `twin` is empty, or this is a model compiled for Edge TPUs, made
    from the model of that name with the SHA-256 `twin_sha256`.
    """

    name: str = msgspec.field()
    kind: str
    file: str
    sha256: str
    size_bytes: int
    context_tokens: int = 0
    description: str = ""
    base: str = ""
    twin: str = ""
    twin_sha256: str = ""


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


#: What a manifest said when it was read last, and the change time, size and inode that it had then.
_remembered: dict[Path, tuple[tuple[int, int, int], list[Entry]]] = {}


def read_manifest(folder: Path) -> list[Entry]:
    """The entries of a folder's manifest; none when there is no manifest. ManifestBroken when it cannot be read.

    Read again only when the file has changed: a status lists the models each time it is asked for.
    """
    path = folder / "manifest.json"
    try:
        found = path.stat()
        if found.st_size > MANIFEST_LIMIT_BYTES:
            raise ManifestBroken(f"{path}: larger than {MANIFEST_LIMIT_BYTES} bytes")
        key = (found.st_mtime_ns, found.st_size, found.st_ino)
        before = _remembered.get(path)
        if before is not None and before[0] == key:
            return before[1]
        entries = msgspec.json.decode(path.read_bytes(), type=Manifest).models
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestBroken(f"{path}: {error}") from error
    for entry in entries:
        if not _PLAIN_NAME.fullmatch(entry.file):
            raise ManifestBroken(f"{path}: {entry.name}: file must be a plain name, not {entry.file!r}")
    if time.time_ns() - found.st_mtime_ns > SETTLED_NS:
        _remembered[path] = key, entries
    return entries


def shipped() -> dict[str, Model]:
    """The models that come with the software, by name."""
    return _in_folder(SHIPPED, shipped=True)


def catalogue(paths: Paths) -> dict[str, Model]:
    """All models by name. One that the owner added comes before one that ships under the same name."""
    return shipped() | _in_folder(paths.models, shipped=False)


def compiled(known: Mapping[str, Model]) -> dict[str, Model]:
    """Those of `known` that are compiled for Edge TPUs, by the name of their twin: the file that runs where there is no TPU, and
    that says how texts become its input. One whose twin is not there, or has changed since, is left out."""
    found = {}
    for model in known.values():
        twin = known.get(model.entry.twin)
        if twin is not None and twin.entry.sha256 == model.entry.twin_sha256:
            found[twin.name] = model
    return found


def _in_folder(folder: Path, *, shipped: bool) -> dict[str, Model]:
    return {
        entry.name: Model(entry=entry, path=folder / entry.file, shipped=shipped)
        for entry in read_manifest(folder)
    }


def find(paths: Paths, name: str) -> Model:
    """The model of that name. ModelUnknown names those that there are. A manifest of the owner's that cannot be read hides no
    model that ships."""
    try:
        models = catalogue(paths)
    except ManifestBroken:
        models = shipped()
        if name not in models:
            raise
    if name not in models:
        known = ", ".join(sorted(models)) or "none"
        raise ModelUnknown(f"no model is called {name!r}; there are: {known}")
    return models[name]


def adapters_of(paths: Paths, name: str) -> list[Model]:
    """The adapters of a model, the first ADAPTERS_LIMIT by name; none while a manifest cannot be read."""
    try:
        found = catalogue(paths)
    except ManifestBroken:
        found = shipped()
    return [found[each] for each in sorted(found) if found[each].entry.base == name][:ADAPTERS_LIMIT]


def digest(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file, in hexadecimal."""
    sha = hashlib.sha256()
    done = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done)
    return sha.hexdigest()


def verify(model: Model, progress: Progress | None = None) -> None:
    """Reads the whole file and compares. ModelCorrupt when it is missing, short or changed."""
    entry = model.entry
    try:
        size = model.path.stat().st_size
        if size != entry.size_bytes:
            raise _corrupt(model, f"has {size} bytes, the manifest says {entry.size_bytes}")
        found = digest(model.path, progress)
    except OSError as error:
        raise _corrupt(model, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    if found != entry.sha256:
        raise _corrupt(model, f"has the SHA-256 {found}, the manifest says {entry.sha256}")


def _corrupt(model: Model, what: str) -> ModelCorrupt:
    """Names the model and its file, not where it lies: strangers may read this in `/health`."""
    if model.path.parent == SHIPPED:
        remedy = "install Coral-Reef again"
    else:
        remedy = f"add it again with 'coral-reef model add FILE --name {model.name} --replace'"
    return ModelCorrupt(f"the model {model.name}: its file {model.path.name} {what}: {remedy}")
