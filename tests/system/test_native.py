"""`scripts/native` keeps its word about which engine is installed. Building takes minutes: a stand-in for pip builds nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .booted import ROOT

pytestmark = pytest.mark.system

PORTABLE = "Tag: cp310-abi3-manylinux_2_17_x86_64"
NATIVE = "Tag: cp310-abi3-linux_x86_64"

PIP = """#!/bin/bash
echo "$CMAKE_ARGS $*" >>calls
shift
dist=.venv/lib/python3.11/site-packages/xllamacpp-1.dist-info
case $1 in
wheel)
    [ ! -e broken-build ] || { echo "no compiler"; exit 1; }
    touch .native/xllamacpp-1-cp310-abi3-linux_x86_64.whl ;;
install)
    case $* in
    *--require-hashes*) echo "TAG-PORTABLE" >$dist/WHEEL ;;
    *linux_x86_64.whl) echo "TAG-NATIVE" >$dist/WHEEL ;;
    esac ;;
esac
""".replace("TAG-PORTABLE", PORTABLE).replace("TAG-NATIVE", NATIVE)

PYTHON = "#!/bin/bash\n[ ! -e broken-engine ]\n"


class Machine:
    """A copy of the script with stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir()
        shutil.copy(ROOT / "scripts/native", folder / "scripts/native")
        self.pin("1")
        (folder / ".venv/bin").mkdir(parents=True)
        for name, text in (("pip", PIP), ("python", PYTHON)):
            path = folder / ".venv/bin" / name
            path.write_text(text)
            path.chmod(0o755)
        self.wheel = folder / ".venv/lib/python3.11/site-packages/xllamacpp-1.dist-info/WHEEL"
        self.wheel.parent.mkdir(parents=True)
        self.wheel.write_text(f"{PORTABLE}\n")

    def pin(self, version: str) -> None:
        lines = (
            f"websockets==9 \\\n    --hash=sha256:aa\nxllamacpp=={version} \\\n    --hash=sha256:bb \\\n"
            "    --hash=sha256:cc\n    # via coral-reef\nyarl==1 \\\n    --hash=sha256:dd\n"
        )
        (self.folder / "requirements.lock").write_text(lines)

    def run(self, what: str, *, status: int = 0) -> str:
        done = subprocess.run(
            [str(self.folder / "scripts/native"), what],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done
        return done.stdout + done.stderr

    @property
    def calls(self) -> list[str]:
        """What pip was asked for since the last look."""
        path = self.folder / "calls"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def is_native(self) -> bool:
        """Whether the build of this machine is installed."""
        return NATIVE in self.wheel.read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_build_restore_and_undo(machine: Machine) -> None:
    assert "used from the next start" in machine.run("build")
    assert machine.is_native()
    build, install = machine.calls
    assert build.startswith("-DLLAMA_LLGUIDANCE=OFF -DLLAMA_BUILD_BORINGSSL=OFF ")
    assert "--no-binary xllamacpp --require-hashes" in build
    assert "--no-index" in install
    pinned = (machine.folder / ".native/pin").read_text()
    assert pinned == "xllamacpp==1 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n"
    # Once more: what was built is there.
    machine.run("build")
    assert len(machine.calls) == 1
    # The environment was made anew.
    assert machine.run("restore") == ""
    machine.wheel.write_text(f"{PORTABLE}\n")
    assert "Installing the text engine that was built for this CPU" in machine.run("restore")
    assert machine.is_native()
    assert "portable one again" in machine.run("undo")
    assert not machine.is_native()
    assert not (machine.folder / ".native").exists()
    assert machine.run("restore") == ""
    assert "is the portable one" in machine.run("undo")


def test_another_version_or_cpu(machine: Machine) -> None:
    machine.run("build")
    machine.pin("2")
    assert "'make native' builds it anew" in machine.run("restore")
    assert not machine.is_native()
    assert not (machine.folder / ".native").exists()
    machine.run("build")
    (machine.folder / ".native/fits").write_text("xllamacpp==2\nanother machine\n")
    assert "another CPU or version" in machine.run("restore")
    assert not machine.is_native()


def test_a_build_that_fails_changes_nothing(machine: Machine) -> None:
    (machine.folder / "broken-build").touch()
    said = machine.run("build", status=69)
    assert "no compiler" in said
    assert "coral-reef: the text engine cannot be built" in said
    assert not machine.is_native()
    assert machine.run("restore") == ""


def test_a_build_that_does_not_run_is_taken_back(machine: Machine) -> None:
    (machine.folder / "broken-engine").touch()
    assert "the portable one is back" in machine.run("build", status=69)
    assert not machine.is_native()
    assert not (machine.folder / ".native").exists()


def test_wrong_use(machine: Machine) -> None:
    assert "usage: scripts/native build|undo|restore" in machine.run("dance", status=69)
