"""`coral-reef model`: what it does without an appliance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import appliance
from appliance.cli.main import main
from appliance.cli.model import template
from appliance.inference import library
from appliance.inference.choice import choose_model
from appliance.inference.models import shipped
from appliance.inference.tflite import read_tflite
from appliance.paths import Paths
from tests.cli.completing import offered
from tests.inference.gguf_files import METADATA, STRING, gguf, pair, shipped_model, text
from tests.inference.tflite_files import compiled_file

ROOT = Path(appliance.__file__).parents[1]
(SHIPS,) = (model.name for model in shipped().values() if model.entry.kind == "text")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with nothing of the developer's own in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("CORAL_REEF_STATE", "CORAL_REEF_URL", "CORAL_REEF_KEY", "STATE", "PORT", "_ARGCOMPLETE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mine.gguf").write_bytes(gguf())
    return tmp_path


def model(nowhere: Path, *arguments: str) -> int:
    return main(["model", *arguments, "--state", str(nowhere / "state")])


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """One line on standard error."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("coral-reef: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_add_and_show(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert model(nowhere, "add", "mine.gguf") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for line in (
        "model         mine (yours)",
        "title         Tiny",
        "architecture  llama, 96 parameters, Q8_0",
        "window        512 tokens",
        "chat template 14 characters\n  {{ messages }}\n",
        "coral-reef model load mine",
    ):
        assert line in out
    assert model(nowhere, "show", "mine") == 0
    shown = capsys.readouterr().out
    assert shown == out[: len(shown)]
    assert model(nowhere, "show", "mine", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"]["name"], found["gguf"]["context_tokens"], found["shipped"]) == ("mine", 512, False)
    assert Path(found["path"]).is_file()


def test_show_a_model_for_tpus(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert model(nowhere, "show", "coral-reef-emotion") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for line in (
        "model         coral-reef-emotion (ships with Coral-Reef)",
        "kind          emotion",
        "input         int8 1x",
        "output        int8 1x8, scale ",
        "operations    2 FULLY_CONNECTED",
        "parameters    ",
        "SHA-256       ",
    ):
        assert line in out
    assert "window" not in out
    assert model(nowhere, "show", "coral-reef-emotion", "--json") == 0
    said = json.loads(capsys.readouterr().out)["tflite"]
    assert said["operations"] == ["FULLY_CONNECTED"] * 2
    assert said["inputs"][0]["type"] == "int8"
    assert not said["compiled"]
    assert said["metadata_bytes"]["coral-reef-card"] > 100


def test_show_a_compiled_model(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twin = shipped()["coral-reef-emotion"]
    inputs, outputs = (
        each[0].shape[1] for each in (read_tflite(twin.path).inputs, read_tflite(twin.path).outputs)
    )
    made = library.add_compiled(Paths.under(nowhere / "state"), twin, compiled_file(inputs, outputs))
    assert model(nowhere, "show", made.name) == 0
    out = capsys.readouterr().out
    assert "compiled from coral-reef-emotion\n" in out
    assert "operations    1 custom:edgetpu-custom-op\n" in out
    made.path.write_bytes(b"\x1b[2J" * 10)
    assert model(nowhere, "show", made.name) == 65
    failed(capsys, "the model coral-reef-emotion-edgetpu: ", "not a TensorFlow Lite file")


def test_add_for_programs(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert model(nowhere, "add", "mine.gguf", "--name", "other", "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"]["name"] == "other"


def test_a_model_without_template(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "mine.gguf").write_bytes(gguf(METADATA[:-1]))
    assert model(nowhere, "add", "mine.gguf") == 0
    out, err = capsys.readouterr()
    assert "chat template none\n" in out
    assert err.startswith("coral-reef: warning: the file has no chat template")


def test_what_a_file_says_does_not_steer_the_terminal(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = "\x1b[2Jname\x07"
    metadata = [METADATA[0], pair("general.name", STRING, text(wild))]
    (nowhere / "mine.gguf").write_bytes(
        gguf([*metadata, pair("tokenizer.chat_template", STRING, text(wild))])
    )
    assert model(nowhere, "add", "mine.gguf") == 0
    out, _ = capsys.readouterr()
    assert "[2Jname" in out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_templates() -> None:
    assert template(" \n") == "none"
    shown = template("\n".join(f"line {n}" for n in range(20)) + "x" * 200).splitlines()
    assert shown[0].endswith(" characters")
    assert shown[1] == "  line 0"
    assert shown[-1] == "  (12 more lines)"
    assert max(map(len, template("y" * 500).splitlines())) < 110


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["add", "none.gguf"], 65, "none.gguf: No such file or directory: expected a GGUF file"),
        (["add", "half.gguf"], 65, "half.gguf: 10 of its"),
        (["add", "mine.gguf", "--name", "-"], 65, "is no model's name"),
        (["add", "mine.gguf", "--name", SHIPS], 1, "is the name of a model that ships"),
        (["add", "mine.gguf", "--sha256", "0" * 64], 65, "download it again"),
        (["remove", "nothing"], 1, "no model is called 'nothing'"),
        (["remove", SHIPS], 65, "ships with Coral-Reef and cannot be removed"),
        (["load", "nothing"], 69, "no appliance is running"),
        (["verify", "nothing"], 1, "no model is called 'nothing'"),
        (["show", "nothing"], 1, "no model is called 'nothing'"),
    ],
    ids=str,
)
def test_refused(
    nowhere: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    (nowhere / "half.gguf").write_bytes(gguf()[:-10])
    assert model(nowhere, *arguments) == status
    failed(capsys, words)


def test_a_folder_that_cannot_be_written(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "state").write_text("a file in its place")
    assert model(nowhere, "add", "mine.gguf") == 73
    failed(capsys, str(nowhere / "state"))


def test_a_model_that_is_in_use_stays(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = Paths.under(nowhere / "state")
    for name in ("configured", "chosen"):
        library.add(paths, nowhere / "mine.gguf", name=name)
    paths.etc.mkdir()
    paths.appliance_toml.write_text('[text]\nmodel = "configured"\n')
    assert model(nowhere, "remove", "configured") == 75
    failed(capsys, "configured is the model that writes the replies: load another one first")
    choose_model(paths, "chosen", "configured")
    assert model(nowhere, "remove", "chosen") == 75
    capsys.readouterr()
    assert model(nowhere, "remove", "configured") == 0
    assert capsys.readouterr().out == f"removed configured: {len(gguf())} B are free again\n"


def test_verify(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = Paths.under(nowhere / "state")
    damaged, _ = library.add(paths, nowhere / "mine.gguf", name="damaged")
    library.add(paths, shipped_model(), name="whole")
    assert model(nowhere, "verify") == 0
    assert capsys.readouterr().out.count(" OK ") == 2 + len(shipped())
    data = bytearray(damaged.path.read_bytes())
    data[-1] ^= 1
    damaged.path.write_bytes(data)
    assert model(nowhere, "verify") == 65
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "corrupt" in line]
    assert "the model damaged: its file " in line
    assert "has the SHA-256 " in line
    assert model(nowhere, "verify", "whole") == 0
    assert model(nowhere, "verify", "--json", "damaged", "whole") == 65
    capsys.readouterr()
    model(nowhere, "verify", "--json", "damaged", "whole")
    assert [each["ok"] for each in json.loads(capsys.readouterr().out)] == [False, True]
    damaged.path.unlink()
    assert model(nowhere, "show", "damaged") == 65
    failed(capsys, "the model damaged: ", "No such file")


@pytest.mark.parametrize(
    ("line", "words"),
    [("model load ", {SHIPS, "mine"}), ("model remove ", {"mine"}), ("model show m", {"mine"})],
)
def test_the_shell_is_told_the_models(nowhere: Path, line: str, words: set[str]) -> None:
    library.add(Paths.under(nowhere / ".state"), nowhere / "mine.gguf")
    found = offered(nowhere, f"coral-reef {line}")
    assert {word for word in found if not word.startswith("-")} == words
