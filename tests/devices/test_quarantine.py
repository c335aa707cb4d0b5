"""The file that remembers the quarantine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.devices.quarantine import REASON_LIMIT_CHARS, remember, remembered


def test_it_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "supervisor/tpus.json"
    assert remembered(path) == {}
    remember(path, {"usb-1-1": "flaps", "pci-0000:03:00.0": "x" * 5000})
    assert remembered(path) == {"usb-1-1": "flaps", "pci-0000:03:00.0": "x" * REASON_LIMIT_CHARS}


def test_what_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    remember(tmp_path / "file/tpus.json", {"usb-1-1": "x"})
    assert "the quarantine of TPUs ends with this process" in caplog.text


@given(st.binary() | st.sampled_from([b"[]", b'{"a": 1}', b'{"": "x"}', b"[" * 10_000]))
def test_whatever_stands_in_it(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tpus.json"
        path.write_bytes(content)
        for tpu_id, reason in remembered(path).items():
            assert 1 <= len(tpu_id) <= 64
            assert reason
