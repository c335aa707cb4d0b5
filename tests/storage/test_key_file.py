"""The file with the database's key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from appliance.paths import Paths
from appliance.storage.database import Database
from appliance.storage.errors import KeyFileError
from appliance.storage.key_file import obtain_key, read_key


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.under(tmp_path / "state")


def test_made_once_with_the_database_and_only_for_its_owner(paths: Paths) -> None:
    Database.open(paths).close()
    content = paths.database_key.read_bytes()
    Database.open(paths).close()
    assert paths.database_key.read_bytes() == content
    assert len(bytes.fromhex(content.decode())) == 32
    for file in (paths.database_key, paths.database):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_two_databases_have_two_keys(tmp_path: Path) -> None:
    keys = {obtain_key(tmp_path / f"{number}.key", tmp_path / "no.db") for number in range(2)}
    assert len(keys) == 2


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o777])
def test_refused_when_open_to_others(paths: Paths, mode: int) -> None:
    Database.open(paths).close()
    paths.database_key.chmod(mode)
    with pytest.raises(KeyFileError) as caught:
        Database.open(paths)
    assert str(paths.database_key) in str(caught.value)
    assert f"chmod 600 {paths.database_key}" in caught.value.remedy


@pytest.mark.parametrize(
    "content",
    [b"", b"00" * 31, b"00" * 33, b"0g" * 32, b"00" * 32 + b"\n\n", b"\xff" * 64, b" " + b"00" * 32],
)
def test_refused_when_malformed(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "db.key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(KeyFileError, match="hexadecimal") as caught:
        read_key(file)
    assert str(file) in str(caught.value)
    assert "backup" in caught.value.remedy


def test_a_key_without_newline_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "db.key"
    file.write_bytes(b"Ab" * 32)
    file.chmod(0o600)
    assert read_key(file) == b"\xab" * 32


def test_refused_when_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "db.key", 0o600)
    with pytest.raises(KeyFileError, match="regular"):
        read_key(tmp_path / "db.key")


def test_a_lost_key_is_never_replaced(paths: Paths) -> None:
    with Database.open(paths) as database:
        database.upgrade()
    paths.database_key.unlink()
    with pytest.raises(KeyFileError, match="does not") as caught:
        Database.open(paths)
    assert "backup" in caught.value.remedy
    assert not paths.database_key.exists()


def test_an_empty_database_may_get_a_key(paths: Paths) -> None:
    """A start that a power cut ended between the two files."""
    paths.state.mkdir()
    paths.database.touch()
    with Database.open(paths) as database:
        assert database.upgrade()
