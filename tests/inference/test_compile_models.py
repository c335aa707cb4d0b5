"""`make models-tpu`, with a stand-in for Google's compiler, which is not free to be shipped and runs on x86-64 only."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import msgspec
import pytest

from appliance.inference import compile_models, library, models
from appliance.inference.errors import ModelRefused
from appliance.inference.tflite import read_tflite
from appliance.paths import Paths

from .gguf_files import gguf
from .tflite_files import compiled_file

TWINS = {model.name: model for model in models.shipped().values() if model.path.suffix == ".tflite"}

#: Takes the options that the compiler takes; MADE is a folder with what it makes of each file.
STAND_IN = """#!{python}
import os, pathlib, shutil, sys
option, folder, source = sys.argv[1:]
assert option == "--out_dir"
name = pathlib.Path(source).stem + "_edgetpu.tflite"
made = pathlib.Path(os.environ["MADE"]) / name
print("Edge TPU Compiler version 0.0 (stand-in)")
if not made.exists():
    sys.exit("Compilation failed: no such luck")
shutil.copy(made, pathlib.Path(folder) / name)
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in is installed; what it is to make lies in the folder."""
    tools, folder = tmp_path / "bin", tmp_path / "made"
    tools.mkdir()
    folder.mkdir()
    path = tools / compile_models.COMPILER
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MADE", str(folder))
    monkeypatch.setattr(sys, "argv", ["compile_models", "--state", str(tmp_path / "state")])
    for twin in TWINS.values():
        (folder / f"{twin.path.stem}_edgetpu.tflite").write_bytes(fitting(twin))
    return folder


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.under(tmp_path / "state")


def fitting(twin: models.Model, before: str = "") -> bytes:
    """A compiled file with the inputs and outputs of its twin."""
    file = read_tflite(twin.path)
    return compiled_file(file.inputs[0].shape[1], file.outputs[0].shape[1], before)


def test_every_text_model_for_tpus_is_compiled(
    made: Path, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_models.main() == 0
    assert "coral-reef-embedding: compiled as coral-reef-embedding-edgetpu" in capsys.readouterr().out
    found = models.compiled(models.catalogue(paths))
    assert set(found) == set(TWINS)
    for twin, model in found.items():
        assert model.path.name.endswith("_edgetpu.tflite")
        assert (model.entry.kind, model.shipped) == (TWINS[twin].entry.kind, False)
        models.verify(model)


def test_what_is_compiled_already_stays(made: Path, paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_models.main() == 0
    before = sorted(paths.models.iterdir())
    capsys.readouterr()
    assert compile_models.main() == 0
    assert "coral-reef-emotion: compiled already, as coral-reef-emotion-edgetpu" in capsys.readouterr().out
    assert sorted(paths.models.iterdir()) == before


def test_a_twin_that_has_changed_is_compiled_again(
    made: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compile_models.main() == 0
    manifest = paths.models / "manifest.json"
    entries = [
        msgspec.structs.replace(entry, twin_sha256="0" * 64) for entry in models.read_manifest(paths.models)
    ]
    manifest.write_bytes(msgspec.json.encode(models.Manifest(entries)))
    assert models.compiled(models.catalogue(paths)) == {}
    for twin in TWINS.values():
        name = f"{twin.path.stem}_edgetpu.tflite"
        (made / name).write_bytes(fitting(twin) + b"\0\0\0\0")
    assert compile_models.main() == 0
    assert set(models.compiled(models.catalogue(paths))) == set(TWINS)
    files = {path.name for path in paths.models.glob("*.tflite")}
    assert files == {model.entry.file for model in models.compiled(models.catalogue(paths)).values()}


def test_no_compiler(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["compile_models", "--state", str(paths.state)])
    assert compile_models.main() == 69
    assert (
        "edgetpu_compiler is not installed: see https://coral.ai/docs/edgetpu/compiler/"
        in capsys.readouterr().err
    )


def test_a_compiler_that_fails(made: Path, paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    for path in made.iterdir():
        path.unlink()
    assert compile_models.main() == 65
    said = capsys.readouterr().err
    assert "edgetpu_compiler failed with coral-reef-em" in said
    assert "(exit status 1): Edge TPU Compiler" in said
    assert "Compilation failed: no such luck" in said
    assert not models.compiled(models.catalogue(paths))


def test_what_no_compiler_may_make(paths: Paths) -> None:
    twin = TWINS["coral-reef-emotion"]
    for content, words in (
        (compiled_file(7, 8), r"has inputs and outputs .*, expected"),
        (fitting(twin, before="Gather"), "in part only"),
        (twin.path.read_bytes(), "does not run on an Edge TPU"),
        (b"nothing", "not a TensorFlow Lite file"),
    ):
        with pytest.raises(ModelRefused, match=words):
            library.add_compiled(paths, twin, content)
    assert not paths.models.exists()


def test_it_can_be_removed_and_leaves_other_models_alone(paths: Paths, tmp_path: Path) -> None:
    twin = TWINS["coral-reef-emotion"]
    (tmp_path / "mine.gguf").write_bytes(gguf())
    library.add(paths, tmp_path / "mine.gguf")
    made = library.add_compiled(paths, twin, fitting(twin))
    library.add(paths, tmp_path / "mine.gguf", name="other")
    assert made.path.exists()
    assert set(models.catalogue(paths)) >= {"mine", "other", made.name}
    library.remove(paths, made.name)
    assert not made.path.exists()
    assert twin.name not in models.compiled(models.catalogue(paths))
