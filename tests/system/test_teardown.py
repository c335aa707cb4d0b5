"""What these tests say when they cannot clean up after themselves, and what is no reason to say anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.devices.hotplug import Testbed
from tests.waiting import wait_for

from . import booted
from .booted import MARK, Booted, environment, state_folder

pytestmark = pytest.mark.system


def killed(testbed: Testbed) -> None:
    testbed._process.kill()
    testbed._process.wait()


def test_a_testbed_whose_process_was_killed_says_so() -> None:
    testbed = Testbed()
    killed(testbed)
    with pytest.raises(AssertionError, match="umockdev has ended with -9"):
        testbed.orders(testbed.usb("1-1"))
    with pytest.raises(AssertionError, match="umockdev has ended with -9"):
        testbed.__exit__(None, None, None)
    assert not testbed.root.exists()


def test_what_failed_in_a_testbed_is_not_hidden_by_its_end() -> None:
    def work(testbed: Testbed) -> None:
        with testbed:
            killed(testbed)
            raise RuntimeError("what failed")

    with pytest.raises(RuntimeError, match="what failed"):
        work(Testbed())


def test_who_still_writes_into_a_state_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(39, "Directory not empty", str(folder))

    def leave(folder: Path) -> subprocess.Popen[bytes]:
        command = f"exec 3>{folder}/written && sleep 60"
        writer = subprocess.Popen(["sh", "-c", command])
        wait_for("it writes", (folder / "written").exists)
        return writer

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        told = pytest.raises(AssertionError, match=r"Directory not empty: .* still writes there: .*sleep 60")
        with told, state_folder() as folder:
            writer = leave(folder)
    writer.kill()
    writer.wait()
    shutil.rmtree(folder)


def ended(state: Path, child_s: float) -> Booted:
    """An appliance that has ended well, but for a child that has so long to live."""
    log = state / "log"
    log.touch()
    process = subprocess.Popen(
        ["sh", "-c", f"sleep {child_s} & exit 0"], env=environment({MARK: str(state)}), start_new_session=True
    )
    process.wait()
    return Booted(state, process, log)


def test_what_is_about_to_end_is_not_left_behind(tmp_path: Path) -> None:
    appliance = ended(tmp_path, 0.5)
    appliance.stop()
    assert not appliance.processes()


def test_what_is_left_behind_is_named_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(booted, "ENDING_S", 0.5)
    appliance = ended(tmp_path, 60)
    with pytest.raises(AssertionError, match=r"left behind: \{\d+: 'sleep 60'\}"):
        appliance.stop()
    monkeypatch.undo()
    appliance.destroy()
    assert not appliance.processes()
