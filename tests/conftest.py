"""What every test may use: the option `--long`."""

from __future__ import annotations

import hypothesis
import pytest

# Machines are noisy: a slow example is no failure. What must end in time has a timeout of its own.
hypothesis.settings.register_profile("noisy", deadline=None)
hypothesis.settings.load_profile("noisy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long versions of the tests")


@pytest.fixture(scope="session")
def long_run(request: pytest.FixtureRequest) -> bool:
    """Whether the long versions are wanted."""
    return bool(request.config.getoption("--long"))
