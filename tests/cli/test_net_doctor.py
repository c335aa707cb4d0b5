"""`net doctor` as a command; what it finds in networks that are broken is tested in namespaces of their own."""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path

import pytest

from appliance.cli import net_doctor


def doctor(*words: str) -> int:
    parser = argparse.ArgumentParser()
    net_doctor.add_arguments(parser)
    return net_doctor.main(parser.parse_args(words))


def test_what_listens_and_what_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        (tmp_path / "run/url").write_text(f"http://127.0.0.1:{port}\n")
        doctor("--state", str(tmp_path), "--json")
        found = {each["check"]: each for each in json.loads(capsys.readouterr().out)}
        assert (found["ports"]["subject"], found["ports"]["outcome"]) == (f"127.0.0.1:{port}", "ok")
        assert {"certificate", "clients", "time"} <= set(found)
    assert doctor("--state", str(tmp_path)) == 1
    text = capsys.readouterr().out
    assert f"✗ ports       127.0.0.1:{port}: nothing listens for the API\n" in text
    assert "remedy: 'coral-reef status'" in text
    assert " failed" in text.splitlines()[-1]


def test_a_file_with_errors_is_no_reason_to_see_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/network.yaml").write_text("mode: moon\n")
    assert doctor("--state", str(tmp_path)) == 1
    said = capsys.readouterr()
    assert "network.yaml:1" in said.err
    assert "looking at the network without it" in said.err
    assert "nothing listens for the API" in said.out
