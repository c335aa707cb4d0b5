"""What was in effect before."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.network.errors import NoSuchRevision
from appliance.network.history import KEPT, History


def test_back_and_back(tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    assert history.newest() is None
    with pytest.raises(NoSuchRevision, match="the history is empty"):
        history.back(0)
    for number in range(3):
        history.add(f"text {number}", at=number, by="anna", why="why")
    assert [history.back(steps).text for steps in range(3)] == ["text 2", "text 1", "text 0"]
    assert history.back(1).by == "anna"
    for steps in (3, -1):
        with pytest.raises(NoSuchRevision, match=r"the history has 0 to 2"):
            history.back(steps)


def test_the_same_again_is_nothing_new(tmp_path: Path) -> None:
    history = History(tmp_path)
    assert history.add("a", at=1) == history.add("a", at=2)
    assert history.add("b", at=3).number == 2
    assert history.add("a", at=4).number == 3
    assert [each.text for each in history.all()] == ["a", "b", "a"]


def test_so_many_are_kept_and_nobody_else_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    history = History(folder)
    for number in range(KEPT + 10):
        history.add(str(number), at=number)
    assert len(list(folder.iterdir())) == len(history.all()) == KEPT
    assert history.back(KEPT - 1).text == "10"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o600}


def test_another_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = History(tmp_path)
    history.add("a", at=1)
    history.add("b", at=2)
    (tmp_path / "00000002.json").write_bytes(b"{")
    (tmp_path / "notes.txt").write_text("mine")
    assert [each.text for each in history.all()] == ["a"]
    assert "00000002.json is left out" in caplog.text
    assert history.add("c", at=3).number == 3


@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("history")
    (folder / "00000001.json").write_bytes(data)
    assert len(History(folder).all()) <= 1
