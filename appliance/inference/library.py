"""The owner's own models: added and removed so that an end at any instant, a power cut's too, leaves the library as it was or as
it was to become.

A file is copied under a `.partial` name, flushed, given its final name, and only then named in the manifest, which is replaced in
one step; whatever no manifest names is removed by the next `add`. A final name holds the start of the file's SHA-256, so that a
replaced model and its successor lie side by side until the manifest has changed, and a worker that runs the old one keeps it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from appliance.files import FileLock, LockHeld, sync_folder, write_atomically
from appliance.paths import Paths

from .errors import (
    GgufBroken,
    LibraryBusy,
    ModelCorrupt,
    ModelRefused,
    ModelUnknown,
    NameTaken,
    NoSpace,
)
from .gguf import Gguf, opened, parse_gguf, read_gguf, read_shapes
from .lora import ADAPTER, LORA, check_fits
from .models import (
    ADAPTERS_LIMIT,
    CHUNK_BYTES,
    SHIPPED,
    Entry,
    Manifest,
    Model,
    catalogue,
    find,
    read_manifest,
    shipped,
)

#: A model's name, as `text.model` in appliance.toml takes it.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")

#: Left free for the database and the log.
RESERVE_BYTES = 256 * 1024 * 1024

PARTIAL = ".gguf.partial"

#: The names that `add` gives, and what is left of one that was interrupted. A manifest's temporary file is `write_atomically`'s.
_OURS = re.compile(
    r".+\.[0-9a-f]{16}(?:\.gguf|_edgetpu\.tflite)|.+\.gguf\.partial|\.(?:manifest\.json|.+_edgetpu\.tflite)\..+"
)


def add(
    paths: Paths,
    source: Path,
    *,
    name: str = "",
    base: str = "",
    replace: bool = False,
    sha256: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Model, Gguf]:
    """Copies `source` into the library and returns the new model with what its file says of itself.

    `name` is the file's own when empty; `base` names the model that an adapter is for; `sha256` is what its publisher says,
    compared when given; `progress` is told (bytes done, bytes in all). ModelRefused or one of its kinds, ModelCorrupt when the
    SHA-256 is another, OSError when a disk fails: the library is then as it was.
    """
    name = name or default_name(source)
    if not NAME.fullmatch(name):
        raise ModelRefused(
            f"{name!r} is no model's name: expected at most 128 letters, digits and any of . _ : / -, a letter or digit first"
        )
    with _source(source) as (file, size):
        head = _usable(source, file, size, base)
        with _locked(paths):
            entries = read_manifest(paths.models)
            _check_name(name, entries, replace=replace)
            if base:
                _check_adapter(paths, source, head, base)
                if sum(each.base == base and each.name != name for each in entries) >= ADAPTERS_LIMIT:
                    raise ModelRefused(f"{base} has {ADAPTERS_LIMIT} adapters already: remove one first")
            _sweep(paths.models, entries)
            _check_space(paths.models, size)
            partial = paths.models / f"{_plain(name)}{PARTIAL}"
            try:
                found = _copy(file, partial, size, progress)
                if sha256 and found != sha256.lower():
                    raise ModelCorrupt(
                        f"{source}: its SHA-256 is {found}, expected {sha256.lower()}: download it again"
                    )
                if read_gguf(partial) != head:
                    raise ModelRefused(f"{source} changed while it was copied: try again")
                entry = Entry(
                    name=name,
                    kind=ADAPTER if base else "text",
                    base=base,
                    file=f"{_plain(name)}.{found[:16]}.gguf",
                    sha256=found,
                    size_bytes=size,
                    context_tokens=head.context_tokens,
                    description=head.name[:200],
                )
                os.replace(partial, paths.models / entry.file)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            sync_folder(paths.models)
            entries = [*(each for each in entries if each.name != name), entry]
            _write_manifest(paths.models, entries)
            _sweep(paths.models, entries)
    return Model(entry=entry, path=paths.models / entry.file, shipped=False), head


def add_compiled(paths: Paths, twin: Model, content: bytes) -> Model:
    """Puts what the Edge TPU compiler made of `twin` into the library, as NAME-edgetpu, in the place of what it made before.

    ModelRefused or one of its kinds when that is no model for Edge TPUs with the inputs and outputs of its twin, OSError when a
    disk fails: the library is then as it was.
    """
    # Imported here: it takes a tenth of a second, and the commands import this file.
    from .tflite import parse_tflite, read_tflite

    head = parse_tflite(content)
    if not head.compiled:
        raise ModelRefused(
            f"what was made of {twin.name} does not run on an Edge TPU: it has {head.operations[:8]}"
        )
    if len(head.operations) > 1:
        raise ModelRefused(
            f"what was made of {twin.name} runs on an Edge TPU in part only: it has {head.operations[:8]}"
        )
    found, expected = (
        [(tensor.shape, tensor.type) for tensor in (*each.inputs, *each.outputs)]
        for each in (head, read_tflite(twin.path))
    )
    if found != expected:
        raise ModelRefused(
            f"what was made of {twin.name} has inputs and outputs {found}, expected {expected}"
        )
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"{twin.name}-edgetpu"
    entry = Entry(
        name=name,
        kind=twin.entry.kind,
        file=f"{_plain(twin.name)}.{sha256[:16]}_edgetpu.tflite",
        sha256=sha256,
        size_bytes=len(content),
        description=f"{twin.name}, compiled for Edge TPUs",
        twin=twin.name,
        twin_sha256=twin.entry.sha256,
    )
    with _locked(paths):
        entries = read_manifest(paths.models)
        _sweep(paths.models, entries)
        _check_space(paths.models, len(content))
        write_atomically(paths.models / entry.file, content, mode=0o644)
        entries = [*(each for each in entries if each.name != name), entry]
        _write_manifest(paths.models, entries)
        _sweep(paths.models, entries)
    return Model(entry=entry, path=paths.models / entry.file, shipped=False)


def remove(paths: Paths, name: str) -> Model:
    """Takes the owner's model of that name out of the library and deletes its file; returns what it was.

    A worker that has it loaded keeps it. ModelUnknown when there is none, ModelRefused for one that ships.
    """
    with _locked(paths):
        entries = read_manifest(paths.models)
        entry = next((each for each in entries if each.name == name), None)
        if entry is None:
            known = catalogue(paths)
            if name in known:
                raise ModelRefused(f"{name} ships with Coral-Reef and cannot be removed")
            raise ModelUnknown(f"no model is called {name!r}; there are: {', '.join(sorted(known))}")
        if (adapters := [each.name for each in entries if each.base == name]) and name not in shipped():
            raise ModelRefused(f"{name} has adapters: remove {', '.join(sorted(adapters))} first")
        entries = [each for each in entries if each.name != name]
        _write_manifest(paths.models, entries)
        if all(each.file != entry.file for each in entries):
            (paths.models / entry.file).unlink(missing_ok=True)
            sync_folder(paths.models)
    return Model(entry=entry, path=paths.models / entry.file, shipped=False)


def default_name(source: Path) -> str:
    """The name of a file as a model's: `My model.Q8_0.gguf` is `My-model.Q8_0`."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.name.removesuffix(".gguf")).strip("-._")
    return plain[:128]


def _plain(name: str) -> str:
    """A model's name as a part of a file's."""
    return re.sub(r"[:/]", "-", name)


@contextlib.contextmanager
def _source(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size; every error names it."""
    with contextlib.ExitStack() as stack:
        try:
            opened_file = stack.enter_context(opened(path))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ModelRefused(f"{path}: {reason}: expected a GGUF file") from error
        except GgufBroken as error:
            raise GgufBroken(f"{path}: {error}: expected a GGUF file") from None
        yield opened_file


def _usable(source: Path, file: BinaryIO, size: int, base: str) -> Gguf:
    """What the file says, when it is a whole model that can write replies, or an adapter of `base`."""
    try:
        head = parse_gguf(file, size)
    except GgufBroken as error:
        raise GgufBroken(f"{source}: {error}") from None
    if head.missing_bytes:
        raise GgufBroken(
            f"{source}: {head.missing_bytes} of its {head.needed_bytes} bytes are missing: "
            "it was not copied to its end, copy it again"
        )
    if head.parts > 1:
        raise ModelRefused(
            f"{source}: one of {head.parts} parts of a model: "
            "join them with llama.cpp's 'llama-gguf-split --merge' and add the whole"
        )
    if head.kind == ADAPTER:
        if not base:
            raise ModelRefused(f"{source}: an adapter: say which model it is for, with --for MODEL")
        if head.adapter != LORA:
            raise ModelRefused(
                f"{source}: an adapter of type {head.adapter[:60]!r}: the engine here runs {LORA!r}"
            )
        return head
    if base:
        raise ModelRefused(f"{source}: a model of its own, no adapter: add it without --for")
    if head.kind != "model":
        raise ModelRefused(f"{source}: not a model of its own but of type {head.kind[:60]!r}")
    if not head.tensors:
        raise ModelRefused(f"{source}: holds a vocabulary and no model")
    if not head.causal:
        raise ModelRefused(f"{source}: reads texts and cannot write any ({head.architecture[:60]})")
    return head


def _check_adapter(paths: Paths, source: Path, head: Gguf, base: str) -> None:
    """An adapter that the engine could not load would keep it from loading the model."""
    model = find(paths, base)
    if model.entry.kind != "text":
        raise ModelRefused(f"{base} is no model that writes replies: {source} cannot be an adapter of it")
    architecture = read_gguf(model.path).architecture
    if head.architecture != architecture:
        raise ModelRefused(
            f"{source}: made for a {head.architecture[:60]} model, and {base} is a {architecture[:60]}"
        )
    try:
        check_fits(read_shapes(source), read_shapes(model.path))
    except ModelRefused as error:
        raise ModelRefused(f"{source}: {error} ({base})") from None


def _check_name(name: str, entries: list[Entry], *, replace: bool) -> None:
    if replace:
        return
    if any(each.name == name for each in entries):
        raise NameTaken(
            f"there is a model {name} already: say --replace to put this one in its place, or choose another --name"
        )
    if any(each.name == name for each in read_manifest(SHIPPED)):
        raise NameTaken(
            f"{name} is the name of a model that ships: choose another --name, or say --replace to hide that one"
        )


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + RESERVE_BYTES:
        raise NoSpace(
            f"{folder}: {free >> 20} MiB are free, and the model needs {(size >> 20) + 1} MiB "
            f"besides {RESERVE_BYTES >> 20} MiB for the rest"
        )


def _copy(file: BinaryIO, target: Path, size: int, progress: Callable[[int, int], None]) -> str:
    """Copies `size` bytes from the beginning and flushes them to the disk; returns their SHA-256."""
    sha = hashlib.sha256()
    done = 0
    file.seek(0)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb", buffering=0) as copy:
        while done < size:
            chunk = file.read(min(CHUNK_BYTES, size - done))
            if not chunk:
                raise ModelRefused(f"{target.name}: its source became shorter while it was copied: try again")
            view = memoryview(chunk)
            while view:
                view = view[copy.write(view) :]
            sha.update(chunk)
            done += len(chunk)
            progress(done, size)
        os.fsync(copy.fileno())
    return sha.hexdigest()


def _sweep(folder: Path, entries: list[Entry]) -> None:
    """Removes what interrupted or replaced copies left. Whoever holds the lock is the only one who makes any."""
    named = {each.file for each in entries}
    for path in folder.iterdir():
        if path.name not in named and _OURS.fullmatch(path.name) and path.is_file():
            path.unlink()


def _write_manifest(folder: Path, entries: list[Entry]) -> None:
    content = msgspec.json.format(msgspec.json.encode(Manifest(entries))) + b"\n"
    write_atomically(folder / "manifest.json", content)


@contextlib.contextmanager
def _locked(paths: Paths) -> Iterator[None]:
    """One change at a time."""
    paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.models.mkdir(mode=0o755, exist_ok=True)
    try:
        with FileLock(paths.models / ".lock"):
            yield
    except LockHeld as error:
        raise LibraryBusy(
            f"process {error.holder} is changing the models: try again when it is done"
        ) from None
