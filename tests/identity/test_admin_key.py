"""The first administrator's key."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.identity.admin_key import ensure_admin_key
from appliance.identity.key_format import new_key
from appliance.identity.keys import ApiKeys
from appliance.identity.roles import Role
from appliance.paths import Paths
from appliance.storage.database import Database


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.under(tmp_path / "state")


def role_of_the_file(paths: Paths) -> Role | None:
    with Database.open(paths) as database:
        key = ApiKeys(database).verify(paths.admin_key.read_text().strip())
    return None if key is None else key.role


def number_of_keys(paths: Paths) -> int:
    with Database.open(paths) as database:
        return len(ApiKeys(database).list())


def test_made_at_the_first_start_only(paths: Paths) -> None:
    assert ensure_admin_key(paths) is True
    content = paths.admin_key.read_bytes()
    assert stat.S_IMODE(paths.admin_key.stat().st_mode) == 0o600
    assert role_of_the_file(paths) is Role.ADMIN
    assert ensure_admin_key(paths) is False
    assert paths.admin_key.read_bytes() == content
    assert number_of_keys(paths) == 1


def test_a_deleted_file_stays_deleted(paths: Paths) -> None:
    ensure_admin_key(paths)
    paths.admin_key.unlink()
    assert ensure_admin_key(paths) is False
    assert not paths.admin_key.exists()


def test_whoever_revoked_the_last_key_gets_no_other(paths: Paths) -> None:
    ensure_admin_key(paths)
    with Database.open(paths) as database:
        keys = ApiKeys(database)
        keys.revoke(keys.list()[0].id)
        assert ensure_admin_key(paths, database) is False
    assert role_of_the_file(paths) is None


def test_a_deleted_database_gets_the_key_of_the_file(paths: Paths) -> None:
    ensure_admin_key(paths)
    content = paths.admin_key.read_bytes()
    paths.database.unlink()
    assert ensure_admin_key(paths) is True
    assert paths.admin_key.read_bytes() == content
    assert role_of_the_file(paths) is Role.ADMIN


@pytest.mark.parametrize("content", [b"", b"cr_short_key\n", b"\xff\xfe", b"x" * 100_000])
def test_a_malformed_file_is_replaced(paths: Paths, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    paths.state.mkdir()
    paths.admin_key.write_bytes(content)
    assert ensure_admin_key(paths) is True
    assert role_of_the_file(paths) is Role.ADMIN
    assert stat.S_IMODE(paths.admin_key.stat().st_mode) == 0o600
    assert str(paths.admin_key) in caplog.text


def test_a_key_that_others_could_read_is_replaced(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    paths.state.mkdir()
    leaked = new_key()
    paths.admin_key.write_text(leaked.text())
    paths.admin_key.chmod(0o644)
    assert ensure_admin_key(paths) is True
    assert paths.admin_key.read_text().strip() != leaked.text()
    assert stat.S_IMODE(paths.admin_key.stat().st_mode) == 0o600
    assert role_of_the_file(paths) is Role.ADMIN
    assert leaked.secret not in caplog.text


def test_a_file_that_cannot_be_written_registers_nothing(paths: Paths) -> None:
    with Database.open(paths) as database:
        database.upgrade()
        unwritable = Paths(paths.etc, paths.state / "missing", paths.run)
        with pytest.raises(FileNotFoundError):
            ensure_admin_key(unwritable, database)
        assert ApiKeys(database).list() == []


def test_several_at_once_make_one_key(paths: Paths) -> None:
    with ThreadPoolExecutor(4) as pool:  # each opens the database for itself, as processes do
        made = list(pool.map(ensure_admin_key, [paths] * 4))
    assert sorted(made) == [False, False, False, True]
    assert number_of_keys(paths) == 1
    assert role_of_the_file(paths) is Role.ADMIN
