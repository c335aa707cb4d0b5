"""A running appliance for the tests of this folder, and its log in the report of a test that failed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest

from . import nspawn
from . import vm as vm_module
from .booted import RUNNING, Booted, booted, configure, state_folder
from .image import Image, image
from .installed import GATEWAY, SUPERVISOR
from .nspawn import Machine, Root, booted_machine, nspawn_root
from .report import LONG_REPORT, Figures
from .talk import events_in, question
from .vm import VirtualMachine, kvm, virtual_machine

#: The end of the log that a report shows.
LOG_LINES = 60
CONSOLE_CHARACTERS = 6000

#: The state of the virtual machine to which each test goes back.
HEALTHY = "healthy"

FIGURES: pytest.StashKey[Figures] = pytest.StashKey()
BEGAN: pytest.StashKey[float] = pytest.StashKey()


#: A test run that was started in the background ignores Ctrl-C, and what it starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def systemd_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """A Debian with the appliance installed: see `nspawn.nspawn_root`."""
    with _logged(tmp_path_factory) as log, nspawn_root(log) as root:
        yield root


@pytest.fixture(scope="module")
def machine(systemd_root: Root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """It has booted, and nobody has started the appliance yet; shared by the tests of a module."""
    with _logged(tmp_path_factory) as log, booted_machine(systemd_root, log) as found:
        yield found


@pytest.fixture(scope="session")
def vm_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the virtual machine boots: see `image`."""
    with _logged(tmp_path_factory) as log:
        return image(log)


@pytest.fixture(scope="session")
def session_vm(
    vm_image: Image, figures: Figures, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VirtualMachine]:
    """The one virtual machine of this run, booted once; its state `HEALTHY` is when the appliance would answer a chat."""
    with _logged(tmp_path_factory) as log:
        began = time.monotonic()
        with virtual_machine("vm", vm_image, log) as found:
            found.wait_until_healthy()
            found.save(HEALTHY)
            saved = time.monotonic()
            figures.add("the virtual machine", "virtualized" if kvm() else "emulated")
            for unit in (SUPERVISOR, GATEWAY):
                ready_s = int(found.show(unit, "ActiveEnterTimestampMonotonic")) / 1e6
                figures.add(f"from the kernel's start until {unit} is READY, in the machine", ready_s, "s")
            asked = time.monotonic()
            _first_token(found)
            figures.add("boot to first token", saved - began + time.monotonic() - asked, "s")
            yield found


def _first_token(machine: VirtualMachine) -> None:
    """Returns when a reply has begun."""
    headers = {"Authorization": f"Bearer {machine.out('cat', '/var/lib/coral-reef/admin.key')}"}
    with (
        httpx.Client(base_url=machine.url, headers=headers, timeout=120, trust_env=False) as client,
        client.stream("POST", "/api/v1/chat/stream", json=question()) as response,
    ):
        assert any(event["type"] == "token" for event in events_in(response.iter_lines()))


@pytest.fixture
def vm(session_vm: VirtualMachine) -> VirtualMachine:
    """A virtual machine that has just booted, and in which nobody has done anything yet."""
    session_vm.revert(HEALTHY)
    return session_vm


@pytest.fixture
def chance(record_property: Callable[[str, object], None]) -> random.Random:
    """The draw; CORAL_REEF_TEST_SEED repeats one."""
    seed = int(os.environ.get("CORAL_REEF_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CORAL_REEF_TEST_SEED={seed}")
    record_property("seed", seed)
    return random.Random(seed)


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Figures:
    """What is measured here, for the report at the end."""
    return request.config.stash[FIGURES]


@contextmanager
def _logged(factory: pytest.TempPathFactory) -> Iterator[IO[bytes]]:
    """A file for what the commands behind a fixture say; its end is shown when the fixture fails."""
    path = factory.mktemp("machine") / "log"
    with path.open("wb") as log:
        try:
            yield log
        except BaseException:
            log.flush()
            print(path.read_text("utf-8", errors="replace")[-8000:])
            raise


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = Figures()
    config.stash[BEGAN] = time.monotonic()


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """With -v, each step and its time."""
    if report.when == "call" and report.passed and "system" in report.keywords:
        return "passed", ".", f"PASSED in {report.duration:.1f} s"
    return None


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """The report of the virtual machine; a whole long run writes it into a file, too."""
    found = config.stash[FIGURES]
    if not found.rows:
        return
    terminalreporter.section("the virtual machine")
    for line in found.lines():
        terminalreporter.write_line(line)
    if config.getoption("--long") and not config.getoption("keyword") and exitstatus == 0:
        counts = {kind: len(terminalreporter.stats.get(kind, ())) for kind in ("passed", "skipped")}
        outcome = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        LONG_REPORT.write_text(found.markdown(outcome, time.monotonic() - config.stash[BEGAN]), "utf-8")
        terminalreporter.write_line(f"written to {LONG_REPORT}: commit it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for each in RUNNING:
            lines = each.log.splitlines()[-LOG_LINES:]
            report.sections.append((f"log of the appliance in {each.state}", "\n".join(lines)))
        for machine in nspawn.RUNNING:
            report.sections.append((f"journal of {machine.name}", machine.journal(LOG_LINES)))
        for each_vm in vm_module.RUNNING:
            report.sections.append((f"journal of {each_vm.name}", each_vm.last_words(LOG_LINES)))
            report.sections.append((f"console of {each_vm.name}", each_vm.console[-CONSOLE_CHARACTERS:]))
    return report
