"""Where everything is."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.paths import SOCKET_PATH_LIMIT_BYTES, Paths


def test_the_appliances_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORAL_REEF_STATE", raising=False)
    paths = Paths.from_environment()
    assert paths == Paths.system()
    assert str(paths.appliance_toml) == "/etc/coral-reef/appliance.toml"
    assert str(paths.database) == "/var/lib/coral-reef/coral-reef.db"
    assert str(paths.control_socket) == "/run/coral-reef/supervisor/control.sock"
    assert paths.sockets_fit()


def test_below_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CORAL_REEF_STATE", str(tmp_path))
    paths = Paths.from_environment()
    assert paths == Paths.under(tmp_path)
    places = (paths.etc, paths.state, paths.run, paths.models, paths.lock, paths.admin_key, paths.workers)
    assert all(place.is_relative_to(tmp_path) for place in places)


def test_relative_folders_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Paths.under(Path("state")).state == tmp_path / "state"


@pytest.mark.parametrize(("length", "fits"), [(0, True), (1, False)])
def test_the_longest_socket(length: int, fits: bool) -> None:
    rest = len("/run/workers/") + 32 + len("/engine.sock")
    state = Path("/" + "s" * (SOCKET_PATH_LIMIT_BYTES - rest - 1 + length))
    assert Paths.under(state).sockets_fit() is fits
