"""The command line, as its users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import appliance
from appliance.cli.exit_status import MEANINGS, ExitStatus
from appliance.cli.main import build_parser, main
from appliance.cli.place import paths_of, url_of
from appliance.client.amounts import duration, size
from appliance.config.schema import schema
from appliance.paths import Paths
from tests.cli.completing import offered

ROOT = Path(appliance.__file__).parents[1]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with nothing of the developer's own in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("CORAL_REEF_STATE", "CORAL_REEF_URL", "CORAL_REEF_KEY", "STATE", "PORT", "_ARGCOMPLETE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def leave(*arguments: str) -> int:
    """The status with which argparse ends the command."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_help_lists_the_commands_and_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--help") == 0
    out = capsys.readouterr().out
    for status in ExitStatus:
        assert f"{status:>3}  {MEANINGS[status]}" in out
    for command in ("run", "status", "chat", "model", "user", "config", "completion"):
        assert f"    {command}" in out


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["status"],
        ["chat"],
        ["model"],
        ["model", "list"],
        ["model", "show"],
        ["model", "add"],
        ["model", "remove"],
        ["model", "load"],
        ["model", "verify"],
        ["config"],
        ["config", "check"],
        ["completion"],
    ],
    ids=" ".join,
)
def test_help_of_each_command(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(*command, "--help") == 0
    assert f"usage: coral-reef {' '.join(command)}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--version") == 0
    assert capsys.readouterr().out == f"coral-reef {appliance.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["dance"], [], ["model"], ["config", "check", "--nope"], ["run", "--port", "70000"]],
    ids=str,
)
def test_wrong_use(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(*arguments) == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: coral-reef")


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "dance"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert "invalid choice: 'dance'" in done.stderr
    assert "Traceback" not in done.stderr


# --- config -------------------------------------------------------------------------------------------------------------


def test_good_files(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = nowhere / "appliance.toml"
    path.write_text("[gateway]\nprocesses = 2\n")
    assert main(["config", "check", str(path)]) == 0
    assert capsys.readouterr() == (f"{path}: fine\n", "")


def test_bad_files(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = nowhere / "appliance.toml"
    path.write_text('[gateway]\nprocesses = 99\n\n[chat]\ntemperature = "hot"\nmood = 1\n')
    missing = nowhere / "network.yaml"
    assert main(["config", "check", str(path), str(missing)]) == 78
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        f"{path}:2:",
        f"{path}:5:",
        f"{path}:6:",
        f"{missing}:1:",
    ]
    assert lines[0].startswith(f"{path}:2: gateway.processes: ")
    assert lines[1].startswith(f"{path}:5: chat.temperature: ")
    assert lines[2].startswith(f"{path}:6: chat.mood: ")
    assert lines[3] == f"{missing}:1: does not exist, expected a file"
    assert err == "4 errors, 0 warnings\n"


def test_a_warning_is_no_error(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = nowhere / "appliance.toml"
    path.write_text('[text]\nmodel = "${NOT_SET_ANYWHERE}"\n')
    assert main(["config", "check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{path}:2: text.model: ")
    assert out.endswith(" (a warning)\n")
    assert err == "0 errors, 1 warning\n"


def test_problems_for_programs(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = nowhere / "appliance.toml"
    path.write_text("port = \n")
    assert main(["config", "check", "--json", str(path)]) == 78
    (problem,) = json.loads(capsys.readouterr().out)
    assert (problem["file"], problem["line"], problem["severity"]) == (str(path), 1, "error")


def test_no_files(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--state", str(nowhere)]) == 0
    assert capsys.readouterr().out == "no configuration files: every setting has its default\n"


def test_the_appliances_own_files(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "etc").mkdir()
    (nowhere / "etc/appliance.toml").write_text("[text]\nslots = 0\n")
    assert main(["config", "check", "--state", str(nowhere)]) == 78
    assert capsys.readouterr().out.startswith(f"{nowhere}/etc/appliance.toml:2: text.slots: ")
    assert main(["config", "show", "--state", str(nowhere)]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{nowhere}/etc/appliance.toml:2: text.slots: ")


def test_what_holds(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--state", str(nowhere)]) == 0
    assert "appliance.gateway.processes = 0\n" in capsys.readouterr().out
    assert main(["config", "show", "--json", "--state", str(nowhere)]) == 0
    assert json.loads(capsys.readouterr().out)["appliance"]["gateway"]["processes"] == 0


def test_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(schema()))
    assert main(["config", "schema", "appliance.toml"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one == found["appliance.toml"]
    Draft202012Validator.check_schema(one)


# --- what needs an appliance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["chat", "-m", "hello"]], ids=" ".join)
def test_nothing_runs(nowhere: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--state", str(nowhere)]) == 69
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"coral-reef: no appliance is running with {nowhere}: start one with 'make run'")
    assert err.count("\n") == 1


def test_a_socket_that_a_dead_one_left(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "run/supervisor").mkdir(parents=True)
    (nowhere / "run/supervisor/control.sock").touch()
    assert main(["status", "--state", str(nowhere)]) == 69
    assert capsys.readouterr().err.count("\n") == 1


def test_no_key(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-m", "hello", "--url", "http://127.0.0.1:9", "--state", str(nowhere)]) == 77
    err = capsys.readouterr().err
    assert f"cannot read the API key in {nowhere}/admin.key" in err
    assert err.count("\n") == 1


def test_nobody_at_the_address(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CORAL_REEF_KEY", "key")
    assert main(["chat", "-m", "hello", "--url", "http://127.0.0.1:9", "--state", str(nowhere)]) == 69
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("coral-reef: ")
    assert err.count("\n") == 1
    assert "http://127.0.0.1:9" in err


@pytest.mark.parametrize(
    "key",
    ["caf\u00e9", "a\nb", "x" * 5_000],
    ids=["not ascii", "lines", "long"],
)
def test_a_strange_key(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    monkeypatch.setenv("CORAL_REEF_KEY", key)
    assert main(["chat", "-m", "hello", "--url", "http://127.0.0.1:9", "--state", str(nowhere)]) in (69, 77)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://x", "http://x:99999", "http://[::1"])
def test_a_strange_address(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    monkeypatch.setenv("CORAL_REEF_KEY", "key")
    assert main(["chat", "-m", "hello", "--url", url, "--state", str(nowhere)]) in (1, 2, 69)
    assert capsys.readouterr().err.count("\n") == 1


def test_models_without_an_appliance(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "list", "--state", str(nowhere)]) == 0
    assert "coral-reef-chat" in capsys.readouterr().out
    assert main(["model", "list", "--json", "--state", str(nowhere)]) == 0
    assert {each["name"] for each in json.loads(capsys.readouterr().out)} == {
        "coral-reef-chat",
        "coral-reef-embedding",
        "coral-reef-emotion",
    }


def test_a_broken_manifest(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "models").mkdir()
    (nowhere / "models/manifest.json").write_text("{")
    assert main(["model", "list", "--state", str(nowhere)]) == 1
    assert capsys.readouterr().err.startswith(f"coral-reef: {nowhere}/models/manifest.json: ")


# --- completion, places, tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "coral-reef" in capsys.readouterr().out


def test_the_shell_is_told_the_personas(nowhere: Path) -> None:
    assert offered(nowhere, "coral-reef chat m") == {"marina"}


def test_which_folder(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build_parser().parse_args(["status"])
    assert paths_of(plain) == Paths.system()
    (nowhere / ".state").mkdir()
    assert paths_of(plain) == Paths.under(nowhere / ".state")
    monkeypatch.setenv("CORAL_REEF_STATE", str(nowhere / "other"))
    assert paths_of(plain) == Paths.under(nowhere / "other")
    named = build_parser().parse_args(["status", "--state", str(nowhere / "third")])
    assert paths_of(named) == Paths.under(nowhere / "third")


def test_which_address(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths.under(nowhere)
    plain = build_parser().parse_args(["chat"])
    paths.run.mkdir()
    (paths.run / "url").write_text("http://127.0.0.1:8080\n")
    assert url_of(plain, paths) == "http://127.0.0.1:8080"
    monkeypatch.setenv("CORAL_REEF_URL", "http://tower/")
    assert url_of(plain, paths) == "http://tower"
    named = build_parser().parse_args(["chat", "--url", "http://named"])
    assert url_of(named, paths) == "http://named"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5_334_816, "5.3 MB"), (10**15, "1000.0 TB")],
)
def test_sizes(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.9, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3_599, "59 min"),
        (11_100, "3 h 5 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
