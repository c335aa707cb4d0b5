"""What every test may use: the option `--long`, and TPUs that are none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.edgetpu.stand_in import StandIn

# Machines are noisy: a slow example is no failure. What must end in time has a timeout of its own.
hypothesis.settings.register_profile("noisy", deadline=None)
hypothesis.settings.load_profile("noisy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long versions of the tests")


@pytest.fixture(scope="session")
def long_run(request: pytest.FixtureRequest) -> bool:
    """Whether the long versions are wanted."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    """The stand-in for libedgetpu, where this process and its children find it; without TPUs at first."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        found = StandIn(Path(folder))
        for name, value in found.environment.items():
            patch.setenv(name, value)
        found.load()
        yield found
