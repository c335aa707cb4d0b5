"""A running appliance for the tests of this folder, and its log in the report of a test that failed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from .booted import RUNNING, Booted, booted, configure, state_folder

#: The end of the log that a report shows.
LOG_LINES = 60


@pytest.fixture(scope="module")
def appliance() -> Iterator[Booted]:
    """An appliance with the shipped model, shared by the tests of a module."""
    with state_folder() as state, booted(state) as found:
        yield found


@pytest.fixture(scope="module")
def endless_appliance() -> Iterator[Booted]:
    """An appliance whose replies go on until `max_tokens`, shared by the tests of a module."""
    with state_folder() as state:
        configure(state, endless_model=True)
        with booted(state) as found:
            yield found


@pytest.fixture
def state() -> Iterator[Path]:
    """An empty state folder with a short name."""
    with state_folder() as folder:
        yield folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for each in RUNNING:
            lines = each.log.splitlines()[-LOG_LINES:]
            report.sections.append((f"log of the appliance in {each.state}", "\n".join(lines)))
    return report
