"""The owner's library: what is added and removed, and that it survives an end at any instant."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import struct
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.files import FileLock
from appliance.inference import library, models
from appliance.inference.choice import choose_model, chosen_model
from appliance.inference.errors import (
    GgufBroken,
    InferenceError,
    LibraryBusy,
    ManifestBroken,
    ModelCorrupt,
    ModelRefused,
    ModelUnknown,
    NameTaken,
    NoSpace,
)
from appliance.paths import Paths

from .gguf_files import (
    ARRAY,
    BOOL,
    LORA_METADATA,
    METADATA,
    STRING,
    U16,
    U32,
    array,
    gguf,
    lora,
    pair,
    shipped_model,
    text,
)

OLD = gguf()
NEW = gguf(METADATA[:-1])  # without its template


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.under(tmp_path / "state")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "My model (1).gguf"
    path.write_bytes(OLD)
    return path


def files(paths: Paths) -> set[str]:
    """What lies in the library besides its lock."""
    return {path.name for path in paths.models.iterdir()} - {".lock"}


def check_whole(paths: Paths) -> set[str]:
    """Every model of the manifest is there and undamaged; returns their names."""
    own = [model for model in models.catalogue(paths).values() if not model.shipped]
    for model in own:
        models.verify(model)
    return {model.name for model in own}


# --- add ------------------------------------------------------------------------------------------------------------------


def test_add(paths: Paths, source: Path) -> None:
    steps: list[tuple[int, int]] = []
    model, head = library.add(paths, source, progress=lambda *step: steps.append(step))
    digest = hashlib.sha256(OLD).hexdigest()
    assert (model.name, model.entry.sha256, model.entry.size_bytes) == ("My-model-1", digest, len(OLD))
    assert (model.entry.kind, model.entry.context_tokens, model.entry.description) == ("text", 512, "Tiny")
    assert head.chat_template == "{{ messages }}"
    assert model.path.read_bytes() == OLD
    assert model.path.stat().st_mode & 0o777 == 0o644
    assert models.find(paths, "My-model-1") == model
    assert steps == [(len(OLD), len(OLD))]
    assert files(paths) == {"manifest.json", model.path.name}
    assert source.read_bytes() == OLD, "a copy: the owner's file stays"
    assert paths.state.stat().st_mode & 0o777 == 0o700


def test_progress_of_a_large_file(paths: Paths) -> None:
    steps: list[tuple[int, int]] = []
    library.add(paths, shipped_model(), name="own", progress=lambda *step: steps.append(step))
    size = shipped_model().stat().st_size
    assert len(steps) == 6
    assert steps == sorted(steps)
    assert steps[-1] == (size, size)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Llama-3.2-1B.Q8_0.gguf", "Llama-3.2-1B.Q8_0"),
        ("no suffix", "no-suffix"),
        ("-a  b-.gguf", "a-b"),
        ("_\u00e9t\u00e9.gguf", "t"),
        ("x" * 200 + ".gguf", "x" * 128),
        ("\u00e9.gguf", ""),
    ],
)
def test_names_of_files(file: str, name: str) -> None:
    assert library.default_name(Path("/some/where") / file) == name


@pytest.mark.parametrize("name", ["-x", "a b", "../x", "x" * 129, "a\n", "\u00e9"])
def test_bad_names(paths: Paths, source: Path, name: str) -> None:
    with pytest.raises(ModelRefused, match="is no model's name: expected"):
        library.add(paths, source, name=name)
    assert not paths.models.exists()


def test_names_with_slash_and_colon(paths: Paths, source: Path) -> None:
    first, _ = library.add(paths, source, name="house/model:8b")
    second, _ = library.add(paths, source, name="house-model-8b")
    assert first.path == second.path, "the same content under the same plain name"
    library.remove(paths, "house/model:8b")
    assert check_whole(paths) == {"house-model-8b"}


def test_a_name_that_is_taken(paths: Paths, source: Path) -> None:
    old, _ = library.add(paths, source, name="mine")
    source.write_bytes(NEW)
    with pytest.raises(NameTaken, match="there is a model mine already: say --replace"):
        library.add(paths, source, name="mine")
    assert models.find(paths, "mine") == old
    new, _ = library.add(paths, source, name="mine", replace=True)
    assert models.find(paths, "mine") == new
    assert files(paths) == {"manifest.json", new.path.name}


def test_a_name_that_ships(paths: Paths, source: Path) -> None:
    name = "coral-reef-chat"
    with pytest.raises(NameTaken, match="is the name of a model that ships"):
        library.add(paths, source, name=name)
    library.add(paths, source, name=name, replace=True)
    assert not models.find(paths, name).shipped
    library.remove(paths, name)
    assert models.find(paths, name).shipped


def test_the_publishers_checksum(paths: Paths, source: Path) -> None:
    with pytest.raises(ModelCorrupt, match=r"its SHA-256 is [0-9a-f]{64}, expected 0{64}: download it again"):
        library.add(paths, source, sha256="0" * 64)
    assert files(paths) == set()
    library.add(paths, source, sha256=hashlib.sha256(OLD).hexdigest().upper())


UNUSABLE = {
    "no gguf": (b"hello", GgufBroken, "not a GGUF file"),
    "half": (OLD[:-1], GgufBroken, r"1 of its \d+ bytes are missing: it was not copied to its end"),
    "head only": (OLD[:100], GgufBroken, "it ends in its head, at byte 100"),
    "vocabulary": (gguf(tensors=[]), ModelRefused, "holds a vocabulary and no model"),
    "part": (
        gguf([*METADATA, pair("split.count", U16, struct.pack("<H", 3))]),
        ModelRefused,
        "one of 3 parts",
    ),
    "projector": (
        gguf([*METADATA, pair("general.type", STRING, text("mmproj"))]),
        ModelRefused,
        "not a model of its own but of type 'mmproj'",
    ),
    "encoder": (
        gguf([*METADATA, pair("llama.attention.causal", BOOL, b"\x00")]),
        ModelRefused,
        "reads texts and cannot write any",
    ),
}


@pytest.mark.parametrize(("data", "kind", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_no_model(
    paths: Paths, source: Path, data: bytes, kind: type[InferenceError], words: str
) -> None:
    source.write_bytes(data)
    with pytest.raises(kind, match=words) as caught:
        library.add(paths, source)
    assert str(caught.value).startswith(f"{source}: ")
    assert not paths.models.exists()


def test_what_is_no_file(paths: Paths, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in (
        (tmp_path / "fifo", "not a regular file: expected a GGUF file"),
        (tmp_path / "none", "No such file or directory: expected a GGUF file"),
        (tmp_path, "Is a directory: expected a GGUF file"),
        (Path("/dev/zero"), "not a regular file"),
        (Path("a\0b"), "null"),
    ):
        with pytest.raises(ModelRefused, match=words):
            library.add(paths, path, name="x")


def test_a_disk_that_is_too_small(paths: Paths, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, library.RESERVE_BYTES))
    with pytest.raises(NoSpace, match="256 MiB are free, and the model needs 1 MiB besides 256 MiB"):
        library.add(paths, source)
    assert files(paths) == set()


def test_a_copy_that_is_given_up(paths: Paths, source: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.add(paths, source, progress=stop)
    assert files(paths) == set()


def test_a_source_that_changes_while_it_is_copied(paths: Paths, source: Path) -> None:
    source.write_bytes(shipped_model().read_bytes())

    def shrink(done: int, _total: int) -> None:
        os.truncate(source, done)

    with pytest.raises(ModelRefused, match="became shorter while it was copied"):
        library.add(paths, source, progress=shrink)
    assert files(paths) == set()


def test_one_change_at_a_time(paths: Paths, source: Path) -> None:
    library.add(paths, source, name="mine")
    with FileLock(paths.models / ".lock"):
        for change in (
            lambda: library.add(paths, source, name="other"),
            lambda: library.remove(paths, "mine"),
        ):
            with pytest.raises(LibraryBusy, match=f"process {os.getpid()} is changing the models"):
                change()
    assert check_whole(paths) == {"mine"}


def test_a_broken_manifest_is_left_alone(paths: Paths, source: Path) -> None:
    library.add(paths, source, name="mine")
    before = files(paths)
    (paths.models / "manifest.json").write_text("{")
    for change in (lambda: library.add(paths, source, name="other"), lambda: library.remove(paths, "mine")):
        with pytest.raises(ManifestBroken):
            change()
    assert files(paths) == before


# --- remove ---------------------------------------------------------------------------------------------------------------


def test_remove(paths: Paths, source: Path) -> None:
    library.add(paths, source, name="mine")
    library.add(paths, source, name="other")
    assert library.remove(paths, "mine").name == "mine"
    assert check_whole(paths) == {"other"}
    assert len(files(paths)) == 2
    with pytest.raises(ModelUnknown, match=r"no model is called 'mine'; there are: .*other"):
        library.remove(paths, "mine")
    name = "coral-reef-chat"
    with pytest.raises(ModelRefused, match="ships with Coral-Reef and cannot be removed"):
        library.remove(paths, name)


def test_remove_what_is_gone_already(paths: Paths, source: Path) -> None:
    model, _ = library.add(paths, source, name="mine")
    model.path.unlink()
    library.remove(paths, "mine")
    assert check_whole(paths) == set()


# --- ended at any instant -------------------------------------------------------------------------------------------------

#: What Python reports before it does it; reading is no danger.
_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate", "fcntl.flock"}


def killed_before(step: int, change: Callable[[Callable[[int, int], None]], object]) -> bool:
    """Runs `change` in a process that kills itself before its file operation number `step`; False when it did not come so far.
    What `change` is given counts as one too: its progress."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            left = step

            def count(event: str, _arguments: object) -> None:
                nonlocal left
                if event in _EVENTS:
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            change(lambda _done, _total: count("open", ()))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


@pytest.mark.parametrize("what", ["add", "replace", "remove"])
def test_killed_at_any_instant(tmp_path: Path, source: Path, what: str) -> None:
    base = Paths.under(tmp_path / "base")
    other = tmp_path / "other.gguf"
    other.write_bytes(OLD)
    library.add(base, other)
    if what != "add":
        library.add(base, source, name="mine")
    source.write_bytes(NEW)
    before = check_whole(base)
    after = {"other"} if what == "remove" else {"other", "mine"}
    seen = set()
    step = 0
    while True:
        paths = Paths.under(tmp_path / f"step-{step}")
        shutil.copytree(base.state, paths.state)

        def change(progress: Callable[[int, int], None], paths: Paths = paths) -> object:
            if what == "remove":
                return library.remove(paths, "mine")
            return library.add(paths, source, name="mine", replace=what == "replace", progress=progress)

        killed = killed_before(step, change)
        names = check_whole(paths)
        assert names in (before, after), f"killed before operation {step}"
        if "mine" in names:
            seen.add(models.find(paths, "mine").path.read_bytes())
        # The next one finds everything in order, and nothing of the one before is left.
        library.add(paths, other, name="next")
        named = {model.path.name for model in models.catalogue(paths).values() if not model.shipped}
        assert files(paths) == {"manifest.json", *named}, f"killed before operation {step}"
        shutil.rmtree(paths.state)
        if not killed:
            assert names == after
            break
        step += 1
    assert step > 5
    assert seen == {"add": {NEW}, "replace": {OLD, NEW}, "remove": {OLD}}[what]


# --- the choice -----------------------------------------------------------------------------------------------------------


def test_the_newer_word_counts(paths: Paths) -> None:
    paths.state.mkdir()
    assert chosen_model(paths, "a") == "a"
    choose_model(paths, "b", "a")
    assert chosen_model(paths, "a") == "b"
    assert chosen_model(paths, "c") == "c", "appliance.toml has been changed since"
    choose_model(paths, "a", "a")
    assert chosen_model(paths, "a") == "a"
    assert not paths.model_choice.exists()
    choose_model(paths, "a", "a")


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": 5}', b"\xff", b"[" * 5_000, b'{"model": "b"}'])
def test_a_choice_that_cannot_be_read(paths: Paths, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    paths.model_choice.parent.mkdir(parents=True)
    paths.model_choice.write_bytes(content)
    assert chosen_model(paths, "a") == "a"
    assert str(paths.model_choice) in caplog.text


# --- adapters -------------------------------------------------------------------------------------------------------------


def test_an_adapter(paths: Paths, tmp_path: Path) -> None:
    source = tmp_path / "chef.gguf"
    source.write_bytes(lora())
    adapter, _ = library.add(paths, source, base="coral-reef-chat")
    assert (adapter.name, adapter.entry.kind, adapter.entry.base) == ("chef", "adapter", "coral-reef-chat")
    assert models.adapters_of(paths, "coral-reef-chat") == [adapter]
    assert models.adapters_of(paths, "chef") == []
    assert check_whole(paths) == {"chef"}
    library.add(paths, shipped_model(), name="mine")
    library.add(paths, source, name="poet", base="mine")
    with pytest.raises(ModelRefused, match=r"mine has adapters: remove poet first"):
        library.remove(paths, "mine")
    library.remove(paths, "poet")
    for number in range(models.ADAPTERS_LIMIT):
        library.add(paths, source, name=f"style-{number}", base="mine")
    assert len(models.adapters_of(paths, "mine")) == models.ADAPTERS_LIMIT
    library.add(paths, source, name="style-0", base="mine", replace=True)
    with pytest.raises(ModelRefused, match=r"mine has 16 adapters already: remove one first"):
        library.add(paths, source, name="poet", base="mine")
    for number in range(models.ADAPTERS_LIMIT):
        library.remove(paths, f"style-{number}")
    library.remove(paths, "mine")
    library.remove(paths, "chef")
    assert check_whole(paths) == set()


def test_adapters_that_are_refused(paths: Paths, source: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "a.gguf"
    adapter.write_bytes(lora())
    other = tmp_path / "b.gguf"
    activated = pair("adapter.alora.invocation_tokens", ARRAY, array(U32, [b"\1\0\0\0"]))
    library.add(paths, source, name="tiny")
    library.add(paths, adapter, name="chef", base="coral-reef-chat")
    for file, content, base, words in (
        (adapter, b"", "", "an adapter: say which model it is for, with --for MODEL"),
        (adapter, b"", "none", "no model is called 'none'"),
        (adapter, b"", "chef", "chef is no model that writes replies"),
        (
            adapter,
            b"",
            "tiny",
            r"is made for another model: 1 of its tensors do not fit, as 'blk.0.attn_q.weight' \(tiny\)",
        ),
        (shipped_model(), b"", "coral-reef-chat", "a model of its own, no adapter: add it without --for"),
        (other, lora(metadata=(*LORA_METADATA, activated)), "coral-reef-chat", "an adapter of type 'alora'"),
        (other, lora(metadata=LORA_METADATA[:2]), "coral-reef-chat", "an adapter of type ''"),
        (
            other,
            lora(
                metadata=(
                    LORA_METADATA[0],
                    pair("general.architecture", STRING, text("qwen2")),
                    *LORA_METADATA[2:],
                )
            ),
            "coral-reef-chat",
            "made for a qwen2 model, and coral-reef-chat is a llama",
        ),
        (other, lora()[:-5], "coral-reef-chat", "5 of its .* bytes are missing"),
    ):
        if content:
            file.write_bytes(content)
        with pytest.raises((ModelRefused, ModelUnknown), match=words):
            library.add(paths, file, name="x", base=base)
    assert check_whole(paths) == {"tiny", "chef"}
