"""The models on disk and their manifests."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.inference import models
from appliance.inference.errors import InferenceError, ManifestBroken, ModelCorrupt, ModelUnknown
from appliance.inference.models import Entry, Model
from appliance.paths import Paths

CONTENT = b"GGUF and more"


def entry(**more: Any) -> dict[str, Any]:
    return {
        "name": "mine",
        "kind": "text",
        "file": "mine.gguf",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "size_bytes": len(CONTENT),
    } | more


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths.under(tmp_path)
    found.models.mkdir(parents=True)
    (found.models / "mine.gguf").write_bytes(CONTENT)
    write(found, entry())
    return found


def write(paths: Paths, *entries: dict[str, Any]) -> None:
    (paths.models / "manifest.json").write_bytes(msgspec.json.encode({"models": entries}))


def test_what_the_owner_added(paths: Paths) -> None:
    model = models.find(paths, "mine")
    assert (model.name, model.shipped, model.path) == ("mine", False, paths.models / "mine.gguf")
    models.verify(model)


def test_what_ships(tmp_path: Path) -> None:
    shipped = models.catalogue(Paths.under(tmp_path))
    assert shipped
    for model in shipped.values():
        assert model.shipped
        models.verify(model)


def test_the_owners_comes_first(paths: Paths) -> None:
    name = next(iter(models.read_manifest(models.SHIPPED))).name
    write(paths, entry(name=name))
    assert not models.find(paths, name).shipped


def test_an_unknown_name(paths: Paths) -> None:
    with pytest.raises(ModelUnknown, match=r"no model is called 'other'; there are: .*mine"):
        models.find(paths, "other")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "mine.gguf cannot be read: No such file or directory: add it again with"),
        (CONTENT[:-1], "has 12 bytes, the manifest says 13: add it again with"),
        (CONTENT + b"!", "has 14 bytes, the manifest says 13"),
        (b"!" + CONTENT[1:], "has the SHA-256 [0-9a-f]{64}, the manifest says [0-9a-f]{64}: add it again"),
    ],
    ids=["missing", "short", "long", "changed"],
)
def test_a_file_that_is_not_what_the_manifest_says(paths: Paths, content: bytes | None, words: str) -> None:
    path = paths.models / "mine.gguf"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=words) as caught:
        models.verify(models.find(paths, "mine"))
    assert str(caught.value).startswith("the model mine: its file mine.gguf ")
    assert str(path.parent) not in str(caught.value), "strangers may read it"
    assert caught.value.code == "model_corrupt"


def test_a_shipped_file_that_is_damaged() -> None:
    model = next(iter(models.shipped().values()))
    changed = msgspec.structs.replace(model.entry, size_bytes=1)
    with pytest.raises(ModelCorrupt, match="install Coral-Reef again"):
        models.verify(msgspec.structs.replace(model, entry=changed))


def test_progress_of_a_check(paths: Paths) -> None:
    done: list[int] = []
    models.verify(models.find(paths, "mine"), done.append)
    assert done == [len(CONTENT)]


def test_a_broken_manifest_hides_no_model_that_ships(paths: Paths) -> None:
    (paths.models / "manifest.json").write_text("{")
    name = next(iter(models.shipped()))
    assert models.find(paths, name).shipped
    with pytest.raises(ManifestBroken):
        models.find(paths, "mine")


def test_a_manifest_is_read_again_when_it_has_changed(paths: Paths) -> None:
    path = paths.models / "manifest.json"
    long_ago = path.stat().st_mtime_ns - 10 * models.SETTLED_NS
    os.utime(path, ns=(long_ago, long_ago))
    first = models.read_manifest(paths.models)
    assert models.read_manifest(paths.models) is first, "it has not changed"
    write(paths, entry(name="yours"))
    assert [each.name for each in models.read_manifest(paths.models)] == ["yours"]
    write(paths, entry(name="thine"))  # as long as before, and perhaps in the same tick
    assert [each.name for each in models.read_manifest(paths.models)] == ["thine"]
    path.unlink()
    assert models.read_manifest(paths.models) == []


def test_a_folder_in_place_of_the_file(paths: Paths) -> None:
    path = paths.models / "folder"
    path.mkdir()
    found = Entry(**entry(file="folder", size_bytes=path.stat().st_size))
    with pytest.raises(ModelCorrupt, match="Is a directory"):
        models.verify(Model(entry=found, path=path, shipped=False))


@pytest.mark.parametrize(
    "name",
    [
        "../mine.gguf",
        "/etc/passwd",
        "a/b",
        "./mine.gguf",
        "mine.gguf/",
        ".",
        "",
        "..",
    ],
)
def test_a_file_outside_the_folder(paths: Paths, name: str) -> None:
    write(paths, entry(file=name))
    with pytest.raises(ManifestBroken, match="mine: file must be a plain name"):
        models.catalogue(paths)


def test_a_nul_in_the_name(paths: Paths) -> None:
    write(paths, entry(file="a\x00b"))
    with pytest.raises(InferenceError):
        models.verify(models.find(paths, "mine"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"models": {}}',
        b'{"models": [{"name": "x"}]}',
        b'{"models": [], "more": 1}',
        b'{"models": [' + msgspec.json.encode(entry(size_bytes="13")) + b"]}",
        b'{"models": [' + msgspec.json.encode(entry(extra=1)) + b"]}",
        b"\xff",
        b'{"models": [{"name": "\xff"}]}',
        b'{"models": ' + b"[" * 100_000,
    ],
    ids=range(12),
)
def test_a_manifest_that_cannot_be_read(paths: Paths, content: bytes) -> None:
    path = paths.models / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ManifestBroken, match=str(path)):
        models.catalogue(paths)


def test_a_manifest_too_large_is_not_read(paths: Paths) -> None:
    with (paths.models / "manifest.json").open("wb") as file:
        file.truncate(models.MANIFEST_LIMIT_BYTES + 1)
    with pytest.raises(ManifestBroken, match="larger than"):
        models.catalogue(paths)


def test_a_manifest_that_is_a_folder(paths: Paths) -> None:
    (paths.models / "manifest.json").unlink()
    (paths.models / "manifest.json").mkdir()
    with pytest.raises(ManifestBroken, match="Is a directory"):
        models.catalogue(paths)


VALUES = st.none() | st.integers(-5, 2**40) | st.text(max_size=5) | st.just("mine.gguf")
ENTRIES = st.dictionaries(
    st.sampled_from(list(Entry.__struct_fields__)) | st.text(max_size=3), VALUES, max_size=7
)


@given(
    st.binary(max_size=100)
    | st.fixed_dictionaries({"models": st.lists(ENTRIES, max_size=3)}).map(
        lambda value: msgspec.json.encode(value)
    )
)
def test_arbitrary_manifests(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "manifest.json").write_bytes(content)
    try:
        found = models.read_manifest(folder)
    except ManifestBroken:
        return
    assert all(isinstance(each, Entry) for each in found)
    assert all((folder / each.file).parent == folder for each in found)
