"""A testbed of umockdev(7), ordered about by lines of JSON: run by `hotplug.Testbed` with umockdev preloaded, which is what makes
libudev send and see its events."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any


def main() -> None:
    library = ctypes.CDLL("libumockdev.so.0")
    library.umockdev_testbed_new.restype = ctypes.c_void_p
    library.umockdev_testbed_get_root_dir.restype = ctypes.c_char_p
    library.umockdev_testbed_get_root_dir.argtypes = [ctypes.c_void_p]
    library.umockdev_testbed_add_devicev.restype = ctypes.c_char_p
    library.umockdev_testbed_add_devicev.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_char_p] * 3,
        *[ctypes.c_void_p] * 2,
    ]
    library.umockdev_testbed_uevent.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    library.umockdev_testbed_remove_device.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    testbed = library.umockdev_testbed_new()
    print(library.umockdev_testbed_get_root_dir(testbed).decode(), flush=True)
    for line in sys.stdin:
        began = time.monotonic()
        for order in json.loads(line):
            match order:
                case ["add", subsystem, name, parent, attributes, properties]:
                    library.umockdev_testbed_add_devicev(
                        testbed,
                        subsystem.encode(),
                        name.encode(),
                        parent.encode() if parent else None,
                        _array(attributes),
                        _array(properties),
                    )
                case ["uevent", path, action]:
                    library.umockdev_testbed_uevent(testbed, path.encode(), action.encode())
                case ["remove", path]:  # as the kernel does it: the event goes out before the folder
                    library.umockdev_testbed_uevent(testbed, path.encode(), b"remove")
                    library.umockdev_testbed_remove_device(testbed, path.encode())
        print(began, flush=True)


def _array(values: dict[str, str]) -> Any:
    flat = [text.encode() for pair in values.items() for text in pair]
    return (ctypes.c_char_p * (len(flat) + 1))(*flat, None)


if __name__ == "__main__":
    main()
