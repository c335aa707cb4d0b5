"""The stand-in for libedgetpu, built and set up: which TPUs there are, and what each does, is what a test writes."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.wire.messages import TensorModel, TpuBus, TpuRole, TpuShare

from . import models

NAME = "libedgetpu.so.1"
SOURCE = Path(__file__).parent / "libedgetpu.c"


@dataclass(frozen=True)
class Fake:
    """A TPU as a test describes it: `does` is run, error, wedge, crash or absent; `ms` how long an invoke takes."""

    id: str
    does: str = "run"
    ms: int = 0

    @property
    def bus(self) -> TpuBus:
        return TpuBus.USB if self.id.startswith("usb-") else TpuBus.PCIE

    @property
    def node(self) -> str:
        name = self.id.split("-", 1)[1]
        return f"/dev/bus/usb/001/{name}" if self.bus is TpuBus.USB else f"/dev/apex_{name}"

    @property
    def path(self) -> str:
        """What the library calls it."""
        name = self.id.split("-", 1)[1]
        return f"/sys/bus/usb/devices/{name}" if self.bus is TpuBus.USB else self.node

    def share(self, share: float = 1.0, role: TpuRole = TpuRole.MEMORY) -> TpuShare:
        return TpuShare(id=self.id, bus=self.bus, node=self.node, role=role, share=share)


class StandIn:
    """A folder with the library, the file that it reads, and the log that it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control, self.log = folder / "tpus", folder / "log"
        library = folder / NAME
        flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{NAME}"]
        subprocess.run(["gcc", *flags, "-o", str(library), str(SOURCE), "-lm", "-lpthread"], check=True)
        self.library = str(library)
        self.tell()

    def load(self) -> None:
        """Lets this process find it, too: the dynamic linker knows a library that is loaded by its name."""
        ctypes.CDLL(self.library)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to find it."""
        return {
            "LD_LIBRARY_PATH": str(self.folder),
            "FAKE_EDGETPU": str(self.control),
            "FAKE_EDGETPU_LOG": str(self.log),
        }

    def tell(self, *tpus: Fake, open_ms: int = 0, skew: bool = False) -> None:
        """From now on these are the TPUs."""
        lines = [f"open-ms {open_ms}", f"skew {int(skew)}"]
        lines += [
            f"{'usb' if tpu.bus is TpuBus.USB else 'pci'} {tpu.path} {tpu.does} {tpu.ms}" for tpu in tpus
        ]
        new = self.control.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        os.replace(new, self.control)

    def heard(self, what: str, tpu: Fake | None = None) -> int:
        """How often the library was told to `open`, `invoke` or `close`, that TPU or any."""
        if not self.log.exists():
            return 0
        lines = self.log.read_text().splitlines()
        return sum(line.split()[0] == what and (tpu is None or line.split()[1] == tpu.path) for line in lines)


def write_model(
    folder: Path,
    name: str = "m",
    *,
    content: bytes | None = None,
    kind: str = "tensor",
    compiled: bool = True,
) -> TensorModel:
    """A model's two files; a small one that takes tensors when `content` is left out."""
    twin, other = folder / f"{name}.tflite", folder / f"{name}_edgetpu.tflite"
    content = content or models.fully_connected((64, 32, 16))
    folder.mkdir(parents=True, exist_ok=True)
    twin.write_bytes(content)
    if compiled:
        other.write_bytes(models.compiled(content, name=name))
    return TensorModel(
        name=name,
        kind=kind,
        twin=str(twin),
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        compiled=str(other) if compiled else "",
    )


def write_cut_model(folder: Path, segments: int, name: str = "cut") -> TensorModel:
    """A model of as many layers as segments, and a compiled file for each."""
    content = models.fully_connected((64, *[48] * (segments - 1), 16), seed=9)
    whole = write_model(folder, name, content=content, compiled=False)
    files = [folder / f"{name}_segment_{number}_of_{segments}_edgetpu.tflite" for number in range(segments)]
    for number, file in enumerate(files):
        file.write_bytes(models.compiled(content, name=name, part=slice(number, number + 1)))
    return msgspec.structs.replace(whole, segments=[str(file) for file in files])


def add_text_models(folder: Path, *, compiled: bool = True, **sizes: int) -> dict[str, TensorModel]:
    """An embedding and an emotion model in the owner's folder, with their manifest, in the place of those that ship; by kind.
    `sizes` as `models.text_model`'s."""
    found = {
        kind: write_model(
            folder,
            f"coral-reef-{kind}",
            content=models.text_model(kind, **sizes),
            kind=kind,
            compiled=compiled,
        )
        for kind in ("embedding", "emotion")
    }
    entries = [
        {
            "name": each.name,
            "kind": each.kind,
            "file": Path(each.twin).name,
            "sha256": each.sha256,
            "size_bytes": each.size_bytes,
        }
        for each in found.values()
    ]
    (folder / "manifest.json").write_text(json.dumps({"models": entries}))
    return found
