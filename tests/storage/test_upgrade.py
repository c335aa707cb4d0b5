"""Migrations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import appliance
from appliance.paths import Paths
from appliance.storage import upgrade as upgrade_module
from appliance.storage.conversations import Conversations
from appliance.storage.database import Database
from appliance.storage.errors import DatabaseDamaged, DatabaseNewer
from appliance.storage.tables import REVISION, metadata

ROOT = Path(appliance.__file__).parents[1]
CHILD = Path(__file__).with_name("upgrade_child.py")

BROKEN_MIGRATION = """
from alembic import op
revision, down_revision = "broken", None
def upgrade():
    op.execute("CREATE TABLE half (a INTEGER)")
    op.execute("INSERT INTO nowhere VALUES (1)")
"""

ORPHANING_MIGRATION = """
from alembic import op
revision, down_revision = "orphaning", None
def upgrade():
    op.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
    op.execute("CREATE TABLE child (id INTEGER REFERENCES parent (id))")
    op.execute("INSERT INTO child VALUES (7)")
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.under(tmp_path / "100% state")


def use_migration(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, revision: str) -> None:
    (folder / "versions").mkdir(parents=True)
    (folder / "versions" / "0001.py").write_text(text)
    (folder / "env.py").write_text((upgrade_module.MIGRATIONS / "env.py").read_text())
    monkeypatch.setattr(upgrade_module, "MIGRATIONS", folder)
    monkeypatch.setattr(upgrade_module, "REVISION", revision)


def test_from_empty_to_the_tables_of_this_software(paths: Paths) -> None:
    with Database.open(paths) as database:
        assert database.upgrade() is True
        assert database.upgrade() is False
        with database.reading() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
            table = connection.exec_driver_sql(
                "SELECT sql FROM sqlite_master WHERE name = 'messages'"
            ).scalar_one()
    assert "ON DELETE CASCADE" in table
    assert "CHECK (role IN" in table


def test_the_constant_names_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(upgrade_module.MIGRATIONS).replace("%", "%%"))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_history_and_lists_are_read_from_an_index(paths: Paths) -> None:
    queries = {
        "messages_in_order": "SELECT * FROM messages WHERE session_id = 's' ORDER BY position DESC LIMIT 9",
        "sessions_by_owner": "SELECT * FROM sessions WHERE owner = 'o' ORDER BY updated_at DESC LIMIT 9",
    }
    with Database.open(paths) as database:
        database.upgrade()
        with database.reading() as connection:
            for query in queries.values():
                plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")]
                assert len(plan) == 1, plan  # a second step would be the sorting
                assert "USING INDEX" in plan[0]


def test_nothing_of_alembic_is_imported_when_there_is_nothing_to_do(paths: Paths) -> None:
    with Database.open(paths) as database:
        database.upgrade()
    script = (
        "import sys; from pathlib import Path; from appliance.paths import Paths;"
        "from appliance.storage.database import Database;"
        "database = Database.open(Paths.under(Path(sys.argv[1]))); print(database.upgrade());"
        "database.close(); print('alembic' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(paths.state)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert answer.stdout.split() == ["False", "False"]


def test_two_processes_at_once(paths: Paths) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(paths.state)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=60)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(answers) == ["False", "True"]
    with Database.open(paths) as database:
        assert Conversations(database).create("owner", "persona")


def test_a_newer_database_is_refused_and_left_alone(paths: Paths) -> None:
    with Database.open(paths) as database:
        database.upgrade()
        with database.writing() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(DatabaseNewer, match="9999") as caught:
            database.upgrade()
        assert "newer software" in caught.value.remedy
        with database.reading() as connection:
            kept = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
            enforced = connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one()
    assert kept == "9999"
    assert enforced == 1


@pytest.mark.parametrize("text", [BROKEN_MIGRATION, ORPHANING_MIGRATION], ids=["broken", "orphaning"])
def test_a_migration_that_fails_leaves_nothing(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with Database.open(paths) as database:
        with monkeypatch.context() as patch:
            revision = "broken" if text is BROKEN_MIGRATION else "orphaning"
            use_migration(patch, tmp_path / "migrations", text, revision)
            with pytest.raises(Exception, match=r"nowhere|refer to rows") as caught:
                database.upgrade()
        if revision == "orphaning":
            assert isinstance(caught.value, DatabaseDamaged)
        with database.reading() as connection:
            assert connection.exec_driver_sql("SELECT name FROM sqlite_master").all() == []
        assert database.upgrade() is True
