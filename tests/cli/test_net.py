"""`coral-reef net`, before a supervisor whose network takes every text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.cli.exit_status import ExitStatus
from appliance.cli.main import main
from tests.console.appliance import Place, place
from tests.supervisor.some_network import TEXT


@pytest.fixture
async def there() -> AsyncIterator[Place]:
    async with place() as found:
        yield found


async def net(there: Place, *words: str) -> int:
    return await asyncio.to_thread(main, ["net", *words, "--state", str(there.paths.state)])


async def test_looking(there: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert await net(there, "show") == 0
    shown = capsys.readouterr().out
    assert "primary" in shown
    assert "10.0.0.2/24" in shown
    assert await net(there, "show", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ports"][0]["interface"] == "eth0"
    assert await net(there, "history") == 0
    assert "at the start" in capsys.readouterr().out
    assert await net(there, "history", "--show", "0") == 0
    assert capsys.readouterr().out == TEXT
    assert await net(there, "firewall") == 0
    assert "There is no firewall" in capsys.readouterr().out


async def test_a_change(there: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(TEXT.replace("10.0.0.2", "10.0.0.3"))
    assert await net(there, "diff", str(other)) == 0
    assert capsys.readouterr().out == "change primary to 10.0.0.3\n"
    assert there.network.file == TEXT
    assert await net(there, "apply", str(other), "--confirm", "30", "--why", "because") == 0
    assert "goes back in 30 s" in capsys.readouterr().out
    assert await net(there, "confirm") == 0
    assert there.network.file == other.read_text()
    assert await net(there, "confirm") == ExitStatus.FAILED
    assert "nothing waits" in capsys.readouterr().err
    assert await net(there, "rollback", "0") == 0
    assert there.network.file == TEXT
    assert await net(there, "cancel") == 0


async def test_what_is_wrong(there: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("mode: hub\n")
    for words, status, said in (
        (("apply", str(bad)), ExitStatus.BAD_CONFIGURATION, 'network.yaml:1: mode: is "hub"'),
        (("apply", str(tmp_path / "none.yaml")), ExitStatus.USAGE, "does not exist"),
        (("apply", str(tmp_path)), ExitStatus.BAD_CONFIGURATION, "is a folder"),
        (("apply", "--confirm", "-1"), ExitStatus.USAGE, "expected seconds"),
        (("rollback", "-1"), ExitStatus.USAGE, "expected 0 or more"),
        (("rollback", "9"), ExitStatus.FAILED, "there is no revision 9: the history has 0 to 0"),
    ):
        assert await net(there, *words) == status, words
        assert said in capsys.readouterr().err


async def test_a_guest_leaves_the_network_alone(there: Place, capsys: pytest.CaptureFixture[str]) -> None:
    await there.stop()
    there.guest = True
    await there.start()
    assert await net(there, "show") == 0
    assert "The network is not managed here: this appliance runs beside others" in capsys.readouterr().out
    assert await net(there, "apply") == ExitStatus.FAILED
    assert "whose network it leaves alone" in capsys.readouterr().err
