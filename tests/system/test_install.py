"""`scripts/install` says in one line what it cannot do. This machine has all packages: stand-ins answer that it has not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

SCRIPT = Path(__file__).parents[2] / "scripts/install"

#: What the script runs before it installs anything.
TOOLS = ("bash", "env", "dirname", "awk", "id", "cat", "grep", "sed")


def run(folder: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """The script with nothing on its PATH but TOOLS and these shell scripts, which come before the tools."""
    shell = shutil.which("bash")
    for name, text in programs.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!{shell}\n{text}\n", "utf-8")
        path.chmod(0o755)
    for name in TOOLS:
        if name not in programs:
            (folder / name).symlink_to(str(shutil.which(name)))
    command = [str(shell), str(SCRIPT), "run"]
    return subprocess.run(
        command, env={"PATH": str(folder)}, capture_output=True, text=True, timeout=60, check=False
    )


def complaint(answer: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error of a script that failed as documented."""
    assert answer.returncode == 69
    (line,) = answer.stderr.splitlines()
    return line


def test_a_missing_package_and_nothing_to_install_it_with(tmp_path: Path) -> None:
    line = complaint(run(tmp_path, dpkg_query="exit 1"))
    assert line.startswith("coral-reef: these Debian packages are missing and there is no apt-get: ")
    assert "libsystemd-dev" in line


def test_a_package_that_cannot_be_had(tmp_path: Path) -> None:
    line = complaint(run(tmp_path, dpkg_query="exit 1", id="echo 0", apt_get="[ $1 = update ]"))
    assert line.startswith("coral-reef: these Debian packages cannot be installed: ")


def test_an_ordinary_user_without_sudo(tmp_path: Path) -> None:
    line = complaint(run(tmp_path, dpkg_query="exit 1", id="echo 1000", apt_get="exit 0"))
    assert line.startswith("coral-reef: install these Debian packages as root, then try again: ")
