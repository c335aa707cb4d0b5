"""What is read from and written to a worker's control group; a real one is at work in `tests/system`."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.supervisor import cgroups
from appliance.supervisor.cgroups import Group, machine_oom_kills

EVENTS = "low 0\nhigh 0\nmax 7\noom 2\noom_kill {}\noom_group_kill 0\n"


def test_kills_of_this_life(tmp_path: Path) -> None:
    """One that goes on counting from the life before counts for nothing."""
    (tmp_path / "memory.events").write_text(EVENTS.format(3))
    group = Group(tmp_path)
    assert group.oom_kills() == 0
    (tmp_path / "memory.events").write_text(EVENTS.format(5))
    assert group.oom_kills() == 2


def test_another_limit(tmp_path: Path) -> None:
    group = Group(tmp_path)
    group.limit_memory(1024)
    assert list(tmp_path.iterdir()) == [], "memory is not counted here"
    assert group.oom_kills() == 0
    (tmp_path / "memory.max").write_text("max")
    for limit_bytes, written in ((1024, ("1024", "0")), (0, ("max", "max"))):
        group.limit_memory(limit_bytes)
        files = (tmp_path / "memory.max", tmp_path / "memory.swap.max")
        assert tuple(file.read_text() for file in files) == written


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("nr_free_pages 12\noom_kill 4\nnuma_hit 9\n", 4),
        ("nr_free_pages 12\n", 0),
        ("oom_kill many\n", 0),
        ("", 0),
    ],
)
def test_kills_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, count: int) -> None:
    assert machine_oom_kills() >= 0
    monkeypatch.setattr(cgroups, "VMSTAT", tmp_path / "vmstat")
    assert machine_oom_kills() == 0, "there is no such file"
    (tmp_path / "vmstat").write_text(text)
    assert machine_oom_kills() == count
