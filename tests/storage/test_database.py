"""The encrypted file: what is on the disk, and what happens when it is not ours."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy.engine import Connection

import appliance
from appliance.paths import Paths
from appliance.storage import database as database_module
from appliance.storage.conversations import Conversations
from appliance.storage.database import Database
from appliance.storage.errors import (
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseFull,
    DatabaseOlder,
    DatabaseUnreadable,
    StorageError,
)

SECRET_WORDS = "the treasure lies under the third palm"
CHILD = Path(__file__).with_name("turns_child.py")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths.under(tmp_path / "state")
    with Database.open(paths) as database:
        database.upgrade()
    return paths


def append(conversations: Conversations, session_id: str, text: str) -> None:
    conversations.append_turn(
        session_id, text, text, request_id="r", finish_reason="stop", prompt_tokens=1, completion_tokens=1
    )


def start_child(paths: Paths, session_id: str, name: str, count: int) -> subprocess.Popen[str]:
    root = Path(appliance.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(paths.state), session_id, name, str(count)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def pipes(child: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert child.stdin is not None
    assert child.stdout is not None
    return child.stdin, child.stdout


def test_the_disk_holds_no_plain_text(paths: Paths) -> None:
    with Database.open(paths) as database:
        conversations = Conversations(database)
        append(conversations, conversations.create("owner", "persona").id, SECRET_WORDS)
        log = paths.database.with_name(paths.database.name + "-wal")
        assert log.stat().st_size > 0
        for file in (paths.database, log):
            content = file.read_bytes()
            assert not content.startswith(b"SQLite format 3")
            assert SECRET_WORDS.encode() not in content
            assert b"CREATE TABLE" not in content
    assert SECRET_WORDS.encode() not in paths.database.read_bytes()


def test_every_connection_is_set_up(paths: Paths) -> None:
    with Database.open(paths) as database, database.reading() as first, database.writing() as second:
        for connection in (first, second):
            values = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
            assert values == {
                "journal_mode": "wal",
                "synchronous": 2,
                "foreign_keys": 1,
                "busy_timeout": 10_000,
            }


def test_who_waits_for_the_disk(paths: Paths) -> None:
    """Every writer but those that need not, whichever used the connection before."""
    with Database.open(paths) as database:
        for synced in (True, False, True, False, False, True):
            with database.writing(synced=synced) as connection:
                assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == (2 if synced else 1)
            with database.reading() as connection:
                connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")
        assert database.engine.pool.checkedin() == 1  # type: ignore[attr-defined]


def test_a_wrong_key(paths: Paths, capfd: pytest.CaptureFixture[str]) -> None:
    paths.database_key.write_text("11" * 32)
    with pytest.raises(DatabaseUnreadable) as caught:
        Database.open(paths)
    assert str(paths.database) in str(caught.value)
    assert "backup" in caught.value.remedy
    assert "11" * 32 not in "".join(traceback.format_exception(caught.value))
    assert capfd.readouterr() == ("", "")


def test_a_database_that_is_not_encrypted(paths: Paths) -> None:
    paths.database.unlink()
    plain = sqlite3.connect(paths.database)
    plain.execute("CREATE TABLE t (a)")
    plain.close()
    with pytest.raises(DatabaseUnreadable, match="not encrypted"):
        Database.open(paths)


@pytest.mark.parametrize(
    "content", [b"\0" * 8192, b"x" * 4095, os.urandom(10_000)], ids=["zeros", "short", "noise"]
)
def test_a_file_that_is_no_database(paths: Paths, content: bytes) -> None:
    paths.database.write_bytes(content)
    with pytest.raises((DatabaseUnreadable, DatabaseDamaged)) as caught:
        Database.open(paths)
    assert caught.value.remedy


def test_a_damaged_page(paths: Paths) -> None:
    content = bytearray(paths.database.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 + 100] ^= 1
    paths.database.write_bytes(content)
    with Database.open(paths) as database, pytest.raises(DatabaseDamaged) as caught:
        Conversations(database).create("owner", "persona")
    assert str(paths.database) in str(caught.value)


def test_a_folder_in_its_place(paths: Paths) -> None:
    paths.database.unlink()
    paths.database.mkdir()
    with pytest.raises(DatabaseDamaged) as caught:
        Database.open(paths)
    assert str(paths.database) in str(caught.value)


def test_the_key_is_shown_nowhere(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy").setLevel(logging.DEBUG)
    key = paths.database_key.read_text().strip()
    with Database.open(paths) as database:
        conversations = Conversations(database)
        append(conversations, conversations.create("owner", "persona").id, SECRET_WORDS)
        with pytest.raises(StorageError) as caught, database.writing() as connection:
            connection.exec_driver_sql("INSERT INTO nowhere VALUES (?)", (SECRET_WORDS,))
        shown = repr(database) + repr(database.engine) + "".join(traceback.format_exception(caught.value))
    assert "BEGIN" in caplog.text
    for secret in (key, SECRET_WORDS):
        assert secret not in caplog.text
        assert secret not in shown


def test_a_database_without_tables(tmp_path: Path) -> None:
    with Database.open(Paths.under(tmp_path)) as database, pytest.raises(DatabaseOlder) as caught:
        Conversations(database).get("any")
    assert "upgrade" in caught.value.remedy


def test_a_failed_block_leaves_nothing(paths: Paths) -> None:
    def fail(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO sessions VALUES ('s', 'o', 'p', '', 1, 1)")
        raise LookupError

    with Database.open(paths) as database:
        with pytest.raises(LookupError), database.writing() as connection:
            fail(connection)
        assert Conversations(database).get("s") is None


def test_a_lock_held_too_long(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.01)
    with Database.open(paths) as holder, Database.open(paths) as other:
        with holder.writing(), pytest.raises(DatabaseBusy):
            Conversations(other).create("owner", "persona")
        with holder.writing():
            assert Conversations(other).sessions("owner") == []  # readers do not wait
        assert Conversations(other).create("owner", "persona")


def test_a_full_disk_undoes_the_turn(paths: Paths) -> None:
    with Database.open(paths) as database:
        conversations = Conversations(database)
        session = conversations.create("owner", "persona")
        with database.reading() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DatabaseFull):
            append(conversations, session.id, "x" * 100_000)
        assert conversations.history(session.id) == []


def test_four_processes_write_at_once(paths: Paths) -> None:
    with Database.open(paths) as database:
        conversations = Conversations(database)
        session = conversations.create("owner", "persona")
        children = [start_child(paths, session.id, name, 25) for name in "abcd"]
        for child in children:
            assert pipes(child)[1].readline() == "ready\n"
        for child in children:
            orders, _ = pipes(child)
            orders.write("go\n")
            orders.flush()
        for child in children:
            child.communicate(timeout=60)
            assert child.returncode == 0
        history = conversations.history(session.id)
    assert [message.position for message in history] == list(range(200))
    for name in "abcd":
        mine = [message.content for message in history if message.request_id.startswith(name)]
        assert mine == [f"{kind} {name} {number}" for number in range(25) for kind in ("question", "answer")]
    for question, answer in zip(history[::2], history[1::2], strict=True):
        assert question.request_id == answer.request_id
        assert (question.role, answer.role) == ("user", "assistant")


def test_a_killed_process_loses_no_acknowledged_turn(paths: Paths) -> None:
    with Database.open(paths) as database:
        session = Conversations(database).create("owner", "persona")
    child = start_child(paths, session.id, "a", 1_000_000)
    orders, lines = pipes(child)
    with child:
        assert lines.readline() == "ready\n"
        orders.write("go\n")
        orders.flush()
        acknowledged = [lines.readline().strip() for _ in range(20)]
        child.kill()
        acknowledged += [line.strip() for line in lines if line.endswith("\n")]
    with Database.open(paths) as database:
        history = Conversations(database).history(session.id)
        append(Conversations(database), session.id, "and it can still be written")
    assert len(acknowledged) >= 20
    kept = [message.request_id for message in history]
    assert kept[::2] == kept[1::2]
    assert kept[::2][: len(acknowledged)] == acknowledged
    assert len(kept) // 2 - len(acknowledged) <= 1
