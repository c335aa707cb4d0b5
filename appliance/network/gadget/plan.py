"""From the description of a gadget to the steps that make it, and from what lies in configfs to the steps that made that.

Order and attributes: Documentation/usb/gadget_configfs.rst and ABI/testing/configfs-usb-gadget* of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .description import MANUFACTURER, PRODUCT, VENDOR, Function, Gadget
from .steps import Bind, Configfs, Link, MakeFolder, Step, Write

#: Our folder in `usb_gadget`: whatever is in it is ours.
NAME = "coral-reef"

#: The one configuration (Windows refuses to choose among several), and U.S. English, the language of its strings.
CONFIGURATION, LANGUAGE = "c.1", "0x409"

#: Says that the interfaces are grouped by association descriptors (USB ECN "Interface Association Descriptor").
_COMPOSITE_CLASS = ("0xef", "0x02", "0x01")

#: Under which request Windows asks for its own descriptors; any number that the functions do not use. Below 0x80: the kernel
#: shows others back with their sign extended.
_MICROSOFT_REQUEST = "0x43"

#: The highest USB version that the device speaks of itself; the kernel raises it on a SuperSpeed controller.
_USB_VERSION = "0x0200"


def function_folder(gadget: Path, function: Function) -> Path:
    """Where a function of ours lies."""
    return gadget / "functions" / f"{function}.usb0"


def steps_for(gadget: Gadget, folder: Path) -> list[Step]:
    """Everything but the controller. `folder` is the gadget's own in configfs."""
    strings, configuration, windows = (
        folder / "strings" / LANGUAGE,
        folder / "configs" / CONFIGURATION,
        folder / "os_desc",
    )
    device_class, device_subclass, device_protocol = _COMPOSITE_CLASS
    steps: list[Step] = [
        MakeFolder(folder),
        Write(folder / "idVendor", f"0x{VENDOR:04x}"),
        Write(folder / "idProduct", f"0x{PRODUCT:04x}"),
        Write(folder / "bcdUSB", _USB_VERSION),
        Write(folder / "bcdDevice", f"0x{gadget.release:04x}"),
        Write(folder / "bDeviceClass", device_class),
        Write(folder / "bDeviceSubClass", device_subclass),
        Write(folder / "bDeviceProtocol", device_protocol),
    ]
    if gadget.max_speed:
        steps.append(Write(folder / "max_speed", gadget.max_speed))
    steps += [
        MakeFolder(strings),
        Write(strings / "serialnumber", gadget.serial),
        Write(strings / "manufacturer", MANUFACTURER),
        Write(strings / "product", gadget.product),
        MakeFolder(configuration),
        # A tower has a power supply of its own and takes nothing from the desktop, at any speed.
        Write(configuration / "bmAttributes", "0xc0"),
        Write(configuration / "MaxPower", "0"),
        MakeFolder(configuration / "strings" / LANGUAGE),
        Write(configuration / "strings" / LANGUAGE / "configuration", gadget.product),
    ]
    steps += [MakeFolder(function_folder(folder, function)) for function in gadget.functions]
    if Function.NETWORK in gadget.functions:
        network = function_folder(folder, Function.NETWORK)
        steps += [
            Write(network / "dev_addr", gadget.device_mac),
            Write(network / "host_addr", gadget.host_mac),
            # What makes Windows load its own driver for NCM.
            Write(network / "os_desc/interface.ncm/compatible_id", "WINNCM"),
            Write(windows / "use", "1"),
            Write(windows / "b_vendor_code", _MICROSOFT_REQUEST),
            Write(windows / "qw_sign", "MSFT100"),
        ]
    steps += [
        Link(configuration / folder_.name, folder_)
        for folder_ in (function_folder(folder, function) for function in gadget.functions)
    ]
    if Function.NETWORK in gadget.functions:
        steps.append(Link(windows / CONFIGURATION, configuration))
    return steps


def remains(folder: Path, tree: Configfs) -> list[Step]:
    """The steps that somebody has done who is no more; undoing them takes everything away. Attributes are left out."""
    if not folder.is_dir():
        return []
    steps: list[Step] = [MakeFolder(folder)]
    steps += [MakeFolder(path) for path in _folders(folder / "strings")]
    configurations = _folders(folder / "configs")
    for path in configurations:
        steps += [MakeFolder(path), *(MakeFolder(each) for each in _folders(path / "strings"))]
    steps += [MakeFolder(path) for path in _folders(folder / "functions")]
    for path in (*configurations, folder / "os_desc"):
        steps += [Link(link, link.resolve()) for link in _links(path)]
    if controller := tree.read(folder / "UDC"):
        steps.append(Bind(folder / "UDC", controller))
    return steps


def fits(steps: Sequence[Step], found: Sequence[Step], tree: Configfs) -> bool:
    """Whether what was found is a part of `steps`, so that doing the rest completes it. Once it is bound, the kernel takes no
    attribute any more: then each must be right."""
    wanted = {_place(step) for step in steps}
    if any(_place(step) not in wanted for step in found if not isinstance(step, Bind)):
        return False
    bound = any(isinstance(step, Bind) for step in found)
    return not bound or all(step.done(tree) for step in steps)


def _place(step: Step) -> tuple[type[Step], Path | None]:
    return type(step), getattr(step, "path", None)


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in _entries(path) if each.is_dir() and not each.is_symlink())


def _links(path: Path) -> list[Path]:
    return sorted(each for each in _entries(path) if each.is_symlink())


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []
