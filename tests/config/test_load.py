"""Files that are missing, unreadable, or none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.config.appliance import Appliance
from appliance.config.errors import ConfigError, SourceError
from appliance.config.load import check, load, load_appliance, load_network
from appliance.config.network import Network
from appliance.paths import Paths


def test_missing_files_mean_the_defaults(tmp_path: Path) -> None:
    settings = load(Paths.under(tmp_path))
    assert (settings.appliance, settings.network, settings.warnings) == (Appliance(), Network(), ())
    assert load_appliance(tmp_path / "a.toml").path == tmp_path / "a.toml"
    assert check(tmp_path / "a.toml")[0].message == "does not exist, expected a file"


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    assert [str(problem) for problem in check(tmp_path / "a.json")] == [
        f"{tmp_path}/a.json:1: is of an unknown kind, expected a name that ends in .toml, .yaml, .yml"
    ]


def test_problems_of_both_files_come_together(tmp_path: Path) -> None:
    paths = Paths.under(tmp_path)
    paths.etc.mkdir()
    paths.appliance_toml.write_text("x")
    paths.network_yaml.write_text("mode: x")
    with pytest.raises(ConfigError) as caught:
        load(paths)
    assert [problem.file for problem in caught.value.problems] == [
        str(paths.appliance_toml),
        str(paths.network_yaml),
    ]


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def large(path: Path) -> None:
    path.write_bytes(b"#" * (256 * 1024 + 1))


def binary(path: Path) -> None:
    path.write_bytes(b"#\n#\n\xff")


def nul(path: Path) -> None:
    path.write_bytes(b"#\n\0")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (folder, "1: is a folder, expected a file"),
        (pipe, "1: cannot be read (not a regular file), expected a file"),
        (link_to_nothing, "1: is a link to a file that does not exist, expected a file"),
        (link_to_itself, "1: cannot be read (Too many levels of symbolic links), expected a file"),
        (large, "1: is larger than 256 KiB, expected less"),
        (binary, "3: holds bytes that are no text, expected UTF-8"),
        (nul, "2: holds a NUL character, expected text"),
    ],
)
def test_unreadable(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    for name, read in (("appliance.toml", load_appliance), ("network.yaml", load_network)):
        path = tmp_path / name
        make(path)
        with pytest.raises(SourceError) as caught:
            read(path)
        assert str(caught.value) == f"{path}:{message}"
        assert check(path) == list(caught.value.problems)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "network.yaml"
    path.touch()
    monkeypatch.setattr(os, "open", refuse)  # tests may run as root, whom modes do not stop
    assert [str(problem) for problem in check(path)] == [
        f"{path}:1: may not be read by this user, expected permission to read it"
    ]


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    assert check(Path("a\0.toml"))[0].message == "cannot be read (embedded null byte), expected a file"
    (tmp_path / "file").touch()
    (problem,) = check(tmp_path / "file/network.yaml")
    assert problem.message == "cannot be read (Not a directory), expected a file"


def test_nothing_heavy_is_imported_by_the_supervisor() -> None:
    code = (
        "import sys, appliance.config.load\n"
        "print([name for name in ('yaml', 'tomli', 'jsonschema') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
