"""One readable log."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator

import pytest

from appliance.telemetry.log import set_up_logging


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


def test_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logging("gateway")
    logging.getLogger("any").info("%d replies", 3)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d gateway +3 replies\n", err)


def test_a_level_above_info_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logging("supervisor")
    log = logging.getLogger("any")
    log.warning("careful")
    log.debug("unseen")
    assert re.fullmatch(r"\S+ supervisor +warning: careful\n", capfd.readouterr().err)


def test_a_trace_follows(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logging("gateway")
    try:
        raise KeyError("gone")
    except KeyError:
        logging.getLogger("any").exception("it failed")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].endswith("error: it failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "KeyError: 'gone'"


def test_set_up_twice_writes_once(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logging("one")
    set_up_logging("two")
    logging.getLogger("any").info("x")
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_talkative_libraries_are_quieter(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logging("gateway")
    for name in ("uvicorn.error", "alembic.runtime.migration", "httpx"):
        logging.getLogger(name).info("chatter")
    assert capfd.readouterr().err == ""


def test_in_the_journal_it_has_fields(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is sent here: a machine with a journal is another test's (tests/system/test_systemd.py)."""
    stderr = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stderr.st_dev}:{stderr.st_ino}")
    set_up_logging("worker text-1")
    (handler,) = logging.getLogger().handlers
    sent: list[tuple[str, dict[str, str]]] = []

    def send(message: str, /, **fields: str) -> None:
        sent.append((message, fields))

    handler.send = send  # type: ignore[attr-defined]
    logging.getLogger("any").warning("%d replies", 3, extra={"CORAL_REEF_SESSION": "s"})
    ((message, fields),) = sent
    assert message == "3 replies"
    expected = {
        "SYSLOG_IDENTIFIER": "coral-reef-worker",
        "CORAL_REEF_PART": "worker",
        "CORAL_REEF_NAME": "text-1",
        "CORAL_REEF_SESSION": "s",
        "PRIORITY": "4",
        "LOGGER": "any",
    }
    assert expected.items() <= fields.items()
    assert capfd.readouterr().err == ""


def test_a_stream_that_was_redirected_is_not_the_journal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345678")
    set_up_logging("gateway")
    logging.getLogger("any").info("here")
    assert capfd.readouterr().err.endswith(" here\n")
