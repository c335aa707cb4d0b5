"""A folder that behaves as the kernel's configfs does for gadgets: it makes attributes and folders of its own, checks what is
written, and takes a folder away with all that it made itself. tests/system/test_vm_link.py has the real one.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from appliance.network.gadget.steps import Configfs

#: What each folder has from the beginning, by its place below `usb_gadget`.
_GADGET = {
    "attributes": (
        "bDeviceClass",
        "bDeviceProtocol",
        "bDeviceSubClass",
        "bMaxPacketSize0",
        "bcdDevice",
        "bcdUSB",
        "idProduct",
        "idVendor",
        "max_speed",
        "UDC",
        "os_desc/use",
        "os_desc/b_vendor_code",
        "os_desc/qw_sign",
    ),
    "folders": ("configs", "functions", "strings", "os_desc"),
}
_CONFIGURATION = {"attributes": ("MaxPower", "bmAttributes"), "folders": ("strings",)}
_FUNCTIONS = {
    "acm": {"attributes": ("port_num",), "folders": ()},
    "ncm": {
        "attributes": (
            "dev_addr",
            "host_addr",
            "ifname",
            "qmult",
            "os_desc/interface.ncm/compatible_id",
            "os_desc/interface.ncm/sub_compatible_id",
        ),
        "folders": ("os_desc", "os_desc/interface.ncm"),
    },
}
_STRINGS = {"attributes": ("manufacturer", "product", "serialnumber"), "folders": ()}
_CONFIGURATION_STRINGS = {"attributes": ("configuration",), "folders": ()}


class FakeConfigfs(Configfs):
    """`gadgets` is its folder `usb_gadget`, `udc` stands for /sys/class/udc. The operation number `fail_at` (from 0) fails with
    ENODEV, `killed_at` raises `Killed` instead."""

    def __init__(self, root: Path) -> None:
        self.gadgets, self.udc = root / "usb_gadget", root / "udc"
        self.gadgets.mkdir()
        self.udc.mkdir()
        self.fail_at, self.killed_at, self.count = -1, -1, 0
        self.taken: set[str] = set()
        self.line_open = False
        self.interface = "usb0"
        self.log: list[str] = []

    def add_controller(self, name: str, state: str = "not attached", max_speed: str = "high-speed") -> None:
        folder = self.udc / name
        folder.mkdir()
        (folder / "state").write_text(f"{state}\n")
        (folder / "maximum_speed").write_text(f"{max_speed}\n")
        (folder / "current_speed").write_text(f"{max_speed}\n")
        # A gadget that is still bound to that name is begun anew by the kernel, which fails: see Keeper._hangs.
        (folder / "function").write_text("\n")

    def set_state(self, name: str, state: str) -> None:
        (self.udc / name / "state").write_text(f"{state}\n")

    def remove_controller(self, name: str) -> None:
        """A gadget's attribute UDC goes on to name it."""
        shutil.rmtree(self.udc / name)

    def make_folder(self, path: Path) -> None:
        self._step(f"mkdir {path.name}")
        path.mkdir()
        made = self._made_by_the_kernel(path)
        for name in made["folders"]:
            (path / name).mkdir()
        for name in made["attributes"]:
            (path / name).write_text("\n")

    def remove_folder(self, path: Path) -> None:
        self._step(f"rmdir {path.name}")
        made = self._made_by_the_kernel(path)
        assert not (path.name.startswith("acm.") and self.line_open), "the kernel would wait without end"
        bound = path.parent == self.gadgets and (path / "UDC").read_text().strip()
        linked = [link for link in self.gadgets.rglob("*") if link.is_symlink() and link.resolve() == path]
        theirs = [
            each
            for each in path.rglob("*")
            if str(each.relative_to(path)) not in (*made["folders"], *made["attributes"])
        ]
        if theirs or linked or bound:
            raise OSError(errno.EBUSY, "Device or resource busy")
        shutil.rmtree(path)

    def write(self, path: Path, content: str) -> None:
        self._step(f"write {path.name} {content}")
        if not path.is_file():
            raise OSError(errno.ENOENT, "No such file or directory")
        gadget = self.gadgets / path.relative_to(self.gadgets).parts[0]
        bound = (gadget / "UDC").read_text().strip()
        if path.name == "UDC":
            self._bind(path, bound, content)
        elif bound:
            raise OSError(errno.EBUSY, "Device or resource busy")
        # Texts of a fixed length come back padded.
        path.write_text(f"{content}\0\0" if path.name == "compatible_id" else f"{content}\n")

    def _bind(self, path: Path, bound: str, content: str) -> None:
        if content:
            if bound or content in self.taken:
                raise OSError(errno.EBUSY, "Device or resource busy")
            if not (self.udc / content).is_dir():
                raise OSError(errno.ENODEV, "No such device")
            for name in path.parent.glob("functions/ncm.*/ifname"):
                name.write_text(f"{self.interface}\n")
            (self.udc / content / "function").write_text(f"{path.parent.name}\n")
        elif not bound:
            raise OSError(errno.ENODEV, "No such device")
        elif (self.udc / bound).is_dir():
            (self.udc / bound / "function").write_text("\n")

    def link(self, path: Path, target: Path) -> None:
        self._step(f"link {path.name}")
        if not target.is_dir():
            raise OSError(errno.ENOENT, "No such file or directory")
        path.symlink_to(target)

    def unlink(self, path: Path) -> None:
        self._step(f"unlink {path.name}")
        path.unlink()

    def _step(self, what: str) -> None:
        self.log.append(what)
        self.count += 1
        if self.count - 1 == self.killed_at:
            raise Killed
        if self.count - 1 == self.fail_at:
            raise OSError(errno.ENODEV, "No such device")

    def _made_by_the_kernel(self, path: Path) -> dict[str, tuple[str, ...]]:
        match path.relative_to(self.gadgets).parts:
            case (_,):
                return _GADGET
            case (_, "strings", _):
                return _STRINGS
            case (_, "configs", _):
                return _CONFIGURATION
            case (_, "configs", _, "strings", _):
                return _CONFIGURATION_STRINGS
            case (_, "functions", name):
                if (kind := name.partition(".")[0]) not in _FUNCTIONS:
                    raise OSError(errno.ENOENT, "No such file or directory")
                return _FUNCTIONS[kind]
        raise OSError(errno.EPERM, "Operation not permitted")


class Killed(BaseException):
    """The process is no more."""
