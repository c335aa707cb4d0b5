"""The Edge TPUs of this machine, as libedgetpu.so.1 sees them, and interpreters that run on one of them.

Google's `pycoral` is used where it can be imported (the project of that name on PyPI is another one); else libedgetpu itself with
LiteRT. LiteRT's own `load_delegate` is not used: it calls the library with the interpreter's lock held, and opening a TPU takes
3.2 s. Nor are indices (`usb:1`): they count an unsorted listing that is another one a moment later. libedgetpu opens by path,
too.

`python -m appliance.inference.edgetpu PARENT BUS NODE ID MODEL` runs a compiled model once: what a library that was built for
another TensorFlow makes of it is a crash, which no exception tells. It ends with the process PARENT, so that nobody has the TPU
open whom nobody waits for.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from ai_edge_litert.interpreter import Interpreter

from appliance.process import die_with_parent
from appliance.wire.messages import TpuBus

from .errors import EdgeTpuFailed, EdgeTpuGone, LibraryUnusable

#: edgetpu_c.h; Debian package libedgetpu1-std of coral.ai.
LIBRARY = "libedgetpu.so.1"

#: edgetpu_c.h, enum edgetpu_device_type
_TYPES = {0: TpuBus.PCIE, 1: TpuBus.USB}

#: Opening takes 3.2 s, an absent TPU 25 s; what has not ended then does not end.
PROBE_TIMEOUT_S = 40.0

#: What the probe's process ends with when there is no library.
NO_LIBRARY = 3

REMEDY = "install libedgetpu1-std built for TensorFlow 2.16 or later"


class Found(msgspec.Struct, frozen=True):
    """A TPU in the library's listing: `path` is `/dev/apex_0`, or the folder in sysfs of a USB device."""

    bus: TpuBus
    path: str

    def is_at(self, bus: TpuBus, node: str, name: str) -> bool:
        """Whether it is the one with that device node, or on USB that kernel name (`1-1.2`)."""
        return self.bus is bus and (self.path == node or (bus is TpuBus.USB and Path(self.path).name == name))


class Runtime(Protocol):
    """What runs models on TPUs."""

    name: str

    def list(self) -> Sequence[Found]:
        """The TPUs that are there now, in no order."""
        ...

    def interpreter(self, tpu: Found, model: Path) -> Any:
        """An interpreter of a compiled model on that TPU. EdgeTpuFailed when it cannot be opened or the model not be loaded."""
        ...


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))


class _Delegate:
    """What LiteRT's Interpreter asks a delegate for. It lives as long as the interpreter, which keeps it."""

    def __init__(self, library: ctypes.CDLL, tpu: Found) -> None:
        kind = next(number for number, bus in _TYPES.items() if bus is tpu.bus)
        self._library = library
        self._pointer = library.edgetpu_create_delegate(kind, tpu.path.encode(), None, 0)
        if not self._pointer:
            raise EdgeTpuFailed(f"libedgetpu cannot open {tpu.path}")

    def _get_native_delegate_pointer(self) -> int:
        return int(self._pointer)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self._library.edgetpu_free_delegate(self._pointer)


class LibEdgeTpu:
    """libedgetpu.so.1 through its C interface, with LiteRT."""

    def __init__(self, library: str = LIBRARY) -> None:
        """LibraryUnusable when it is not installed, or not what it should be."""
        try:
            found = ctypes.CDLL(library)  # CDLL, not PyDLL: other threads go on while it opens a TPU
            found.edgetpu_version.restype = ctypes.c_char_p
            found.edgetpu_list_devices.restype = ctypes.POINTER(_Device)
            found.edgetpu_list_devices.argtypes = [ctypes.POINTER(ctypes.c_size_t)]
            found.edgetpu_free_devices.argtypes = [ctypes.POINTER(_Device)]
            found.edgetpu_create_delegate.restype = ctypes.c_void_p
            found.edgetpu_create_delegate.argtypes = [
                ctypes.c_int,
                ctypes.c_char_p,
                ctypes.c_void_p,
                ctypes.c_size_t,
            ]
            found.edgetpu_free_delegate.argtypes = [ctypes.c_void_p]
        except (OSError, AttributeError) as error:
            raise LibraryUnusable(f"{library} cannot be used: {error}; {REMEDY}") from error
        self._library = found
        self.name = "libedgetpu"

    def list(self) -> Sequence[Found]:
        count = ctypes.c_size_t()
        devices = self._library.edgetpu_list_devices(ctypes.byref(count))
        try:
            return [
                Found(_TYPES[devices[index].type], devices[index].path.decode("utf-8", "replace"))
                for index in range(count.value)
            ]
        finally:
            self._library.edgetpu_free_devices(devices)

    def interpreter(self, tpu: Found, model: Path) -> Any:
        delegate = _Delegate(self._library, tpu)
        try:
            interpreter = Interpreter(model_path=str(model), experimental_delegates=[delegate], num_threads=1)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise EdgeTpuFailed(f"{model.name} cannot be loaded on {tpu.path}: {error}") from error
        return interpreter


class PyCoral:
    """Google's pycoral, which brings a LiteRT of its own."""

    def __init__(self, edgetpu: Any) -> None:
        self._edgetpu = edgetpu
        self.name = "pycoral"

    def list(self) -> Sequence[Found]:
        return [
            Found(TpuBus(each["type"].replace("pci", "pcie")), each["path"])
            for each in self._edgetpu.list_edge_tpus()
        ]

    def interpreter(self, tpu: Found, model: Path) -> Any:
        """It opens by index, in a listing that we read just before."""
        same = [each.path for each in self.list() if each.bus is tpu.bus]
        if tpu.path not in same:
            raise EdgeTpuGone(f"{tpu.path} is not there any more")
        kind = "usb" if tpu.bus is TpuBus.USB else "pci"
        try:
            interpreter = self._edgetpu.make_interpreter(str(model), device=f"{kind}:{same.index(tpu.path)}")
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise EdgeTpuFailed(f"{model.name} cannot be loaded on {tpu.path}: {error}") from error
        return interpreter


def runtime() -> Runtime:
    """What this machine has. LibraryUnusable when it is nothing, with the remedy."""
    try:
        edgetpu = importlib.import_module("pycoral.utils.edgetpu")
    except ImportError:
        return LibEdgeTpu()
    # PyPI's pycoral has no such functions.
    if hasattr(edgetpu, "list_edge_tpus") and hasattr(edgetpu, "make_interpreter"):
        return PyCoral(edgetpu)
    return LibEdgeTpu()


def look(runtime: Runtime, bus: TpuBus, node: str, tpu: str) -> Found:
    """The TPU with that id in the library's listing of this moment. EdgeTpuGone: opening one that is not there blocks for 25
    s."""
    for found in runtime.list():
        if found.is_at(bus, node, tpu.removeprefix("usb-")):
            return found
    raise EdgeTpuGone(f"{runtime.name} does not see {tpu} ({node})")


def probe(bus: TpuBus, node: str, tpu: str, model: Path) -> None:
    """Lets another process run a compiled model once. LibraryUnusable when there is no library or it crashes, EdgeTpuFailed when
    the TPU does not do it."""
    command = [sys.executable, "-m", __name__, str(os.getpid()), bus, node, tpu, str(model)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise EdgeTpuFailed(f"{tpu} does not answer within {PROBE_TIMEOUT_S:.0f} s") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise LibraryUnusable(f"{LIBRARY} crashes with {name}: it was built for another TensorFlow; {REMEDY}")
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        said = lines[-1][:500] if lines else f"the probe of {tpu} ended with {done.returncode}"
        raise (LibraryUnusable if done.returncode == NO_LIBRARY else EdgeTpuFailed)(said)


def main(parent: str, bus: str, node: str, tpu: str, model: str) -> int:
    die_with_parent(int(parent))
    try:
        found = runtime()
        found.interpreter(look(found, TpuBus(bus), node, tpu), Path(model)).invoke()
    except LibraryUnusable as error:
        print(error, file=sys.stderr)
        return NO_LIBRARY
    except (EdgeTpuFailed, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:6]))
