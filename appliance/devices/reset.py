"""Resetting a TPU: its USB port, or the chip on PCI through its driver."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from appliance.wire.messages import TpuBus

from .errors import ResetFailed

#: _IO('U', 20) of linux/usbdevice_fs.h.
USBDEVFS_RESET = 0x5514

#: _IO(0xDC, 0) of the gasket driver: opening makes us the chip's owner, which it insists on.
GASKET_IOCTL_RESET = 0xDC00


def reset(bus: TpuBus, node: Path) -> None:
    """Blocks until the kernel has done it, some tenths of a second. ResetFailed with the kernel's reason."""
    request = USBDEVFS_RESET if bus is TpuBus.USB else GASKET_IOCTL_RESET
    try:
        descriptor = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, request, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        # The gasket driver lets one process write, and says EPERM to the next.
        in_use = error.errno in (errno.EBUSY, errno.EPERM)
        advice = (
            "unplug it and plug it in again" if bus is TpuBus.USB else "switch the tower off and on again"
        )
        raise ResetFailed(f"{node} cannot be reset: {error.strerror}; {advice}", in_use=in_use) from None
