"""The appliance's own key."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from appliance.identity.device_key import device_key
from appliance.identity.errors import DeviceKeyError


def test_made_once(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    first = device_key(path)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert device_key(path) == first
    assert device_key(tmp_path / "other.key").public != first.public
    assert first.seed.hex() not in repr(first)


def test_ed25519(tmp_path: Path) -> None:
    """RFC 8032, section 7.1, test 1; the fingerprint by sha256sum and base64."""
    path = tmp_path / "device.key"
    path.write_text("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60\n")
    path.chmod(0o600)
    key = device_key(path)
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.fingerprint == "SHA256:If4x36FUomFia/hUBG/SJxt77UtqvkWqWId+9H+XIbk"


def test_open_to_others(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    device_key(path)
    path.chmod(0o640)
    with pytest.raises(DeviceKeyError, match=r"open to other users \(mode 0640\)\. Run `chmod 600"):
        device_key(path)


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "device.key").mkdir(mode=0o700)
    with pytest.raises(DeviceKeyError, match="is not a regular file"):
        device_key(tmp_path / "device.key")


@hypothesis.given(st.binary(max_size=100))
def test_whatever_stands_in_the_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "device.key"
        path.write_bytes(content)
        path.chmod(0o600)
        try:
            key = device_key(path)
        except DeviceKeyError:
            assert path.read_bytes() == content
            return
        assert len(content.strip()) == 64
        assert key.seed == bytes.fromhex(content.decode("ascii"))
