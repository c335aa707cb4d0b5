"""The disk of the virtual machine: a Debian with its own kernel and the appliance installed, as `make image` makes it.

Everything comes from this machine's package sources. The root is `nspawn.installed_root`'s; what is added here is what makes it
boot under QEMU, and what the tests reach it by. An image is known by all that went into it, and kept in the cache for a day.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .booted import ROOT
from .fresh_debian import cache_folder, debian_archive, debian_packages, project_files
from .nspawn import Root, installed_root

#: Downloads the kernel that linux-image-amd64 stands for, unpacked later: its maintainer scripts would build an initrd.
KERNEL_HOOK = (
    'mkdir "$1/kernel" && cd "$1/kernel" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" && '
    "apt-get download $(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2 }')"
)

#: What the initrd loads to mount the root, and what else the kernel may load.
ROOT_MODULES = "virtio_pci virtio_blk crc32c_generic ext4"
MODULES = """
    virtio_net virtio_console virtio_rng autofs4 af_packet configfs
    dummy_hcd libcomposite usb_f_acm usb_f_ncm usb_f_fs cdc-acm cdc_ncm cdc_ether usbip-vudc vhci-hcd
    8021q veth dummy bridge
    nf_tables nft_chain_nat nft_masq nft_nat nft_ct nft_reject_inet nft_log nft_limit nft_fib_inet
"""

#: What goes into an image besides the packages.
PARTS = (
    "appliance",
    "console",
    "udev",
    "units",
    "scripts",
    "requirements-system.lock",
    "debian-packages.txt",
)

SIZE = "3G"

#: For one command of the build.
STEP_TIMEOUT_S = 600.0

#: How long an image that nobody uses stays.
KEPT_S = 86_400.0

#: Of the card through which this machine reaches the API; NetworkManager is to leave it alone.
API_MAC = "52:54:00:00:00:01"
API_ADDRESS, API_PORT = "10.0.2.15", 8079

#: Those that wait for hardware which is not there, or would only make the boot longer.
MASKED = (
    "getty@tty1.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-pstore.service",
    "systemd-rfkill.socket",
)

#: Whose watchdog has less time than that.
WATCHED = ("coral-reef.service", "coral-reef-gateway.service", "coral-reef-console@.service")

FILES = {
    "etc/fstab": "/dev/vda / ext4 rw,noatime 0 0\n",
    "etc/hosts": "127.0.0.1 localhost coral-reef\n",
    "etc/hostname": "coral-reef\n",
    "etc/machine-id": "",
    "etc/systemd/network/10-api0.link": f"[Match]\nMACAddress={API_MAC}\n[Link]\nName=api0\n",
    "etc/NetworkManager/conf.d/machine.conf": (
        "[main]\nplugins=keyfile\nno-auto-default=*\n[connectivity]\nenabled=false\n"
        # The desktop's end of the USB link is another machine's: a NetworkManager that opens and closes it meanwhile can lose
        # the one message that its cable is in.
        f"[keyfile]\nunmanaged-devices=mac:{API_MAC};driver:cdc_ncm\n"
    ),
    # It tells of every command that it runs.
    "etc/systemd/system/qemu-guest-agent.service.d/quiet.conf": "[Service]\nLogLevelMax=warning\n",
    # Emulated, it is so slow that a healthy process may miss its ping, above all when the machine below is busy.
    **{f"etc/systemd/system/{unit}.d/slow.conf": "[Service]\nWatchdogSec=60s\n" for unit in WATCHED},
    # The gateway listens on loopback alone: what comes from outside is handed on to it.
    "etc/systemd/system/api0.service": f"""[Unit]
Description=The address of the card through which the tests reach the API
BindsTo=sys-subsystem-net-devices-api0.device
After=sys-subsystem-net-devices-api0.device
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/ip address add {API_ADDRESS}/24 dev api0
ExecStart=/usr/sbin/ip link set api0 up
[Install]
WantedBy=multi-user.target
""",
    "etc/systemd/system/api-forward.socket": f"""[Unit]
Description=Where the tests reach the API
[Socket]
ListenStream={API_PORT}
BindToDevice=api0
[Install]
WantedBy=sockets.target
""",
    "etc/systemd/system/api-forward.service": """[Unit]
Description=From the tests to the API
[Service]
ExecStart=/lib/systemd/systemd-socket-proxyd 127.0.0.1:8080
""",
}

ENABLED = ("api0.service", "api-forward.socket", "coral-reef.target")

#: The first program; the modules stand in `load` in their order.
INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done </load
until [ -b /dev/vda ]; do sleep 0.05; done
# As after any loss of power: the journal of the file system is replayed here.
mount -t ext4 -o noatime /dev/vda /newroot || exec sh
mount --move /dev /newroot/dev
mount --move /proc /newroot/proc
mount --move /sys /newroot/sys
exec switch_root /newroot /sbin/init
"""


@dataclass(frozen=True)
class Image:
    """What QEMU boots from."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The root, raw; nobody writes to it."""
        return self.folder / "root.img"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"


class Steps:
    """Says what is done now, and how long it took."""

    def __init__(self, say: bool) -> None:
        self._say, self._began = say, 0.0

    def begin(self, what: str) -> None:
        self.end()
        self._began = time.monotonic()
        if self._say:
            print(f"  {what:<40}", end="", flush=True)

    def end(self) -> None:
        if self._began and self._say:
            print(f"{time.monotonic() - self._began:6.1f} s", flush=True)
        self._began = 0.0


def image(log: IO[bytes], *, say: bool = False) -> Image:
    """The one for the project as it is: from the cache, or a new one. `say` prints each step with its time."""
    steps = Steps(say)
    with _only_one():
        steps.begin("a Debian and its kernel")
        archive = debian_archive("vm", debian_packages("run", "system", "vm"), log, hook=KERNEL_HOOK)
        found = Image(cache_folder() / f"vm-image-{_key(archive)}")
        if not found.folder.exists():
            _remove_old()
            partial = Image(Path(tempfile.mkdtemp(prefix="vm-image-partial.", dir=cache_folder())))
            try:
                _make(archive, partial, log, steps)
                partial.folder.rename(found.folder)
            except BaseException:
                shutil.rmtree(partial.folder)
                raise
        steps.end()
    os.utime(found.folder)
    return found


def _make(archive: Path, new: Image, log: IO[bytes], steps: Steps) -> None:
    steps.begin("make install into it")
    with installed_root(archive, log) as root:
        steps.begin("its modules and settings")
        _add_kernel(root, new, log)
        _configure(root, log)
        steps.begin("its file system")
        _run(log, "truncate", f"--size={SIZE}", new.disk)
        options = ["-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1"]
        _run(log, *root.command("nice", "mke2fs", *options, "-d", root.folder, new.disk))


def _add_kernel(root: Root, new: Image, log: IO[bytes]) -> None:
    """Its modules into the tree, as far as they are needed; kernel and initrd beside the disk."""
    packed = root.tree / "kernel"
    (package,) = packed.glob("*.deb")
    _run(log, "dpkg-deb", "--extract", package, packed)
    (kernel,) = packed.glob("boot/vmlinuz-*")
    shutil.copyfile(kernel, new.kernel)
    version = kernel.name.removeprefix("vmlinuz-")
    _run(log, "depmod", f"--basedir={packed}", version)
    source, target = packed / "lib/modules" / version, root.tree / "usr/lib/modules" / version
    for path in _modules(packed, version, f"{ROOT_MODULES} {MODULES}"):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copyfile(source / name, target / name)
    _run(log, "depmod", f"--basedir={root.tree / 'usr'}", version)
    _write_initrd(new.initrd, [source / path for path in _modules(packed, version, ROOT_MODULES)])
    shutil.rmtree(packed)


def _modules(base: Path, version: str, names: str) -> list[Path]:
    """Their files, and those that they need, in the order in which they are to be loaded; built-in ones have none."""
    words = [
        "modprobe",
        "--config=/dev/null",
        f"--dirname={base}",
        f"--set-version={version}",
        "--show-depends",
        "--all",
    ]
    shown = subprocess.run([*words, *names.split()], capture_output=True, text=True, check=True).stdout
    folder = base / "lib/modules" / version
    files = [line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")]
    return list(dict.fromkeys(Path(file).relative_to(folder) for file in files))


def _write_initrd(initrd: Path, modules: Sequence[Path]) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        for each in ("bin", "modules", "proc", "sys", "dev", "newroot"):
            (folder / each).mkdir()
        shutil.copy2(str(shutil.which("busybox")), folder / "bin/busybox")
        for tool in ("sh", "mount", "insmod", "sleep", "switch_root"):
            (folder / "bin" / tool).symlink_to("busybox")
        for module in modules:
            shutil.copyfile(module, folder / "modules" / module.name)
        (folder / "load").write_text("".join(f"{module.name}\n" for module in modules))
        (folder / "init").write_text(INIT)
        (folder / "init").chmod(0o755)
        files = "\n".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
        packed = subprocess.run(
            ["cpio", "--create", "--format=newc", "--quiet", "--owner=0:0"],
            cwd=folder,
            input=files.encode(),
            capture_output=True,
            check=True,
        ).stdout
    initrd.write_bytes(gzip.compress(packed, 1))


def _configure(root: Root, log: IO[bytes]) -> None:
    for name, text in FILES.items():
        path = root.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for unit in MASKED:
        (root.tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
    (root.tree / "var/log/journal").mkdir(exist_ok=True)
    # Who sits at its console is its owner.
    _run(log, *root.command("chroot", root.folder, "passwd", "--delete", "root"))
    _run(log, *root.command("chroot", root.folder, "systemctl", "enable", *ENABLED))


def _run(log: IO[bytes], *words: str | Path) -> None:
    subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=STEP_TIMEOUT_S, check=True
    )


def _key(archive: Path) -> str:
    """All that goes into an image."""
    names = [name for name in project_files() if name.startswith(PARTS)]
    found = hashlib.sha256(f"{archive.name} {sys.version}".encode())
    for path in (Path(__file__), *(ROOT / name for name in sorted(names))):
        found.update(f"{path.name} {path.stat().st_mode}".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _remove_old() -> None:
    """Images of yesterday, and what a build that was ended has left; the younger may be in use."""
    for each in cache_folder().glob("vm-image-*"):
        if "partial" in each.name or time.time() - each.stat().st_mtime > KEPT_S:
            shutil.rmtree(each)


@contextmanager
def _only_one() -> Iterator[None]:
    """One build at a time on this machine."""
    with (cache_folder() / "vm-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def built() -> Image:
    """The one for the project as it is, for a person: says what it does, and ends the program with the reason when it cannot."""
    if os.geteuid() != 0:
        sys.exit("coral-reef: only root can make the image (mmdebstrap, mount): try with sudo")
    with tempfile.TemporaryFile() as log:
        try:
            return image(log, say=True)
        except (subprocess.SubprocessError, OSError, AssertionError) as error:
            log.seek(0)
            sys.exit(f"\n{log.read().decode('utf-8', 'replace')[-8000:]}\ncoral-reef: no image: {error}")


if __name__ == "__main__":
    print(built().folder)  # `make image`
