"""The two builds of the text engine, so that both can be measured in one run whichever is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from appliance.inference.text import engine_build

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".native"


class Engine:
    """A build by name (`wheel` or `native`), and the environment in which every process uses it."""

    def __init__(self, name: str, path: Path | None = None) -> None:
        self.name = name
        self.environment = {**os.environ, **({"PYTHONPATH": f"{path}:{ROOT}"} if path else {})}


def engines(folder: Path) -> list[Engine]:
    """The installed build, and the other one unpacked into `folder`: the native one when `make native` has made it, the portable
    one from the package index."""
    installed = Engine(engine_build().build)
    if installed.name == "native":
        command = [
            sys.executable,
            "-m",
            "pip",
            "-q",
            "download",
            "--no-deps",
            "--require-hashes",
            "-d",
            str(folder),
        ]
        subprocess.run([*command, "-r", str(KEPT / "pin")], check=True, stderr=subprocess.DEVNULL)
        return [Engine("wheel", _unpacked(folder, folder)), installed]
    if list(KEPT.glob("xllamacpp-*.whl")):
        return [installed, Engine("native", _unpacked(KEPT, folder))]
    return [installed]


def _unpacked(source: Path, folder: Path) -> Path:
    (wheel,) = source.glob("xllamacpp-*.whl")
    target = folder / wheel.stem
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target
