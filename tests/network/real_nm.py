"""A real NetworkManager on a bus of its own, in namespaces of its own (network, mounts, process ids); authorisation is off.

The tests' own process enters its network namespace for as long as the context lasts, so that all it does and starts is in there.
`reef0` and `reef1` are a pair of virtual cables each; the other ends, `sw0` and `sw1`, are in a namespace of the switch's.

Not real: the kernel of this machine may have no VLANs, bonds and radios; polkit (see tests/system).
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.waiting import wait_for

CLONE_NEWNET = 0x40000000

BUS = """
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_type="*"/> <allow receive_type="*"/> <allow send_destination="*"/>
  </policy>
</busconfig>
"""

CONFIGURATION = """
[main]
plugins=keyfile
# This machine's /etc/resolv.conf is not ours to write.
rc-manager=unmanaged
no-auto-default=*
auth-polkit=false
dhcp=internal
[connectivity]
enabled=false
[logging]
level=INFO
[device-all]
match-device=*
managed=1
"""

#: NetworkManager wants a sysfs that cannot be written to, else it waits for a udev that is not there.
MOUNTS = """
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/NetworkManager /run/udev /run/etc/conf.d /run/etc/system-connections /var/lib/NetworkManager
mount -t tmpfs tmpfs /var/lib/NetworkManager
mount --bind /run/etc /etc/NetworkManager
mount -t sysfs -o ro sysfs /sys
cp {folder}/NetworkManager.conf /etc/NetworkManager/
ip link set lo up
echo ready
exec sleep infinity
"""

DHCP = """
interface {interface}
start {first}
end {last}
option subnet 255.255.255.0
option router {router}
option dns {router}
max_leases 20
lease_file {folder}/leases
pidfile {folder}/udhcpd.pid
"""


class World:
    """`folder` is the tests' to write in; `environment` leads a program to its bus."""

    def __init__(
        self, folder: Path, keeper: subprocess.Popen[bytes], switch: subprocess.Popen[bytes]
    ) -> None:
        self.folder, self._keeper, self._switch = folder, keeper, switch
        self._log = (folder / "log").open("ab")
        self._started: list[subprocess.Popen[bytes]] = []
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.folder / 'bus'}"}

    @property
    def root(self) -> Path:
        """Its files, as the tests see them."""
        return Path(f"/proc/{self._keeper.pid}/root")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    def _start(
        self, *words: str | Path, at: subprocess.Popen[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        """In the namespaces; ended with their first process."""
        place = at or self._keeper
        process = subprocess.Popen(
            ["nsenter", f"--target={place.pid}", "--mount", "--net", *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=_die_with_us,
        )
        self._started.append(process)
        return process

    def start_bus(self) -> None:
        (self.folder / "bus.conf").write_text(BUS.format(path=self.folder / "bus"), "utf-8")
        self._start("dbus-daemon", f"--config-file={self.folder / 'bus.conf'}", "--nofork", "--nopidfile")
        wait_for("the bus is there", (self.folder / "bus").exists)

    def start_nm(self) -> None:
        """Returns before it is ready: see `wait_for_nm`."""
        assert self._daemon is None
        self._daemon = self._start("NetworkManager", "--no-daemon")

    def wait_for_nm(self) -> None:
        wait_for(
            "NetworkManager has started",
            lambda: self.nmcli("-t", "-f", "STARTUP", "general", check=False) == "started",
        )

    def signal_nm(self, number: int) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(number)

    def kill_nm(self) -> None:
        """As it dies without a word."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        self._daemon = None

    def cable(self, number: int) -> None:
        """Another virtual cable: reefN here, swN at the switch, 10.7N.0.1/24 and router for all."""
        here, there = f"reef{number}", f"sw{number}"
        self.ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", str(self._switch.pid))
        self.at_switch("ip", "link", "set", there, "up", "mtu", "9000")
        self.at_switch("ip", "address", "add", f"10.7{number}.0.1/24", "dev", there)
        self.at_switch("ip", "address", "add", f"fd00:{number}::1/64", "dev", there, "nodad")

    def pull(self, number: int) -> None:
        self.at_switch("ip", "link", "set", f"sw{number}", "down")

    def plug(self, number: int) -> None:
        self.at_switch("ip", "link", "set", f"sw{number}", "up")

    def start_dhcp(self, number: int) -> subprocess.Popen[bytes]:
        (self.folder / "leases").touch()
        configuration = self.folder / f"udhcpd{number}.conf"
        net = f"10.7{number}.0"
        configuration.write_text(
            DHCP.format(
                interface=f"sw{number}",
                first=f"{net}.100",
                last=f"{net}.110",
                router=f"{net}.1",
                folder=self.folder,
            ),
            "utf-8",
        )
        return self._start("busybox", "udhcpd", "-f", configuration, at=self._switch)

    def at_switch(self, *words: str) -> str:
        return _out("nsenter", f"--target={self._switch.pid}", "--net", *words)

    def ip(self, *words: str) -> str:
        return _out("ip", *words)

    def nmcli(self, *words: str, check: bool = True) -> str:
        return _out(
            "nsenter", f"--target={self._keeper.pid}", "--mount", "--net", "nmcli", *words,
            environment=self.environment, check=check,
        )  # fmt: skip

    def addresses(self, interface: str) -> set[str]:
        """What the kernel has there, link-local ones left out."""
        (found,) = json.loads(self.ip("-json", "address", "show", "dev", interface))
        return {
            f"{each['local']}/{each['prefixlen']}" for each in found["addr_info"] if each["scope"] != "link"
        }

    def snapshot(self) -> dict[str, Any]:
        """All that a change which failed must leave as it was: profiles with their files, what is active where, the kernel's
        addresses and routes, the firewall."""
        return {
            "profiles": self.profiles(),
            "active": self.active(),
            "addresses": {
                each["ifname"]: sorted(self.addresses(each["ifname"]))
                for each in json.loads(self.ip("-json", "link"))
            },
            "routes": self.ip("route", "show"),
            "firewall": _out("nft", "list", "ruleset"),
        }

    def profiles(self) -> dict[str, str]:
        """Every file with a profile in it, by its path."""
        found = {}
        for folder in ("etc/NetworkManager/system-connections", "run/NetworkManager/system-connections"):
            for path in sorted((self.root / folder).glob("*.nmconnection")):
                if path.name != "lo.nmconnection":
                    found[f"{folder}/{path.name}"] = path.read_text("utf-8")
        return found

    def active(self) -> dict[str, str]:
        """Interface -> uuid of the profile that is active there."""
        lines = self.nmcli("-t", "-f", "DEVICE,UUID,STATE", "connection", "show", "--active").splitlines()
        rows = [line.split(":") for line in lines]
        return {device: uuid for device, uuid, state in rows if state == "activated" and device != "lo"}

    def close(self) -> None:
        for process in (*self._started, self._switch, self._keeper):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self._log.close()


@contextmanager
def real_nm(*, cables: int = 1) -> Iterator[World]:
    """It has started; nothing is configured."""
    folder = Path(tempfile.mkdtemp(prefix="reef-nm.", dir="/tmp"))
    (folder / "NetworkManager.conf").write_text(CONFIGURATION, "utf-8")
    keeper = _namespaces(MOUNTS.format(folder=folder), "--mount", "--propagation=private", "--net")
    switch = _namespaces("ip link set lo up; echo ready; exec sleep infinity", "--net")
    world = World(folder, keeper, switch)
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    before = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
    try:
        for process in (keeper, switch):
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", "the namespaces could not be made"
            process.stdout.close()
        with Path(f"/proc/{keeper.pid}/ns/net").open("rb") as there:
            _enter(there.fileno())
        os.environ.update(world.environment)
        world.start_bus()
        for number in range(cables):
            world.cable(number)
        world.start_nm()
        world.wait_for_nm()
        yield world
    except BaseException:
        print(world.log[-6000:])
        raise
    finally:
        _enter(own)
        os.close(own)
        if before is None:
            os.environ.pop("DBUS_SYSTEM_BUS_ADDRESS", None)
        else:
            os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = before
        world.close()
        shutil.rmtree(folder)


def _namespaces(script: str, *kinds: str) -> subprocess.Popen[bytes]:
    """A process that keeps namespaces as long as it lives."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "unshare", *kinds, "/bin/sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )


def _enter(descriptor: int) -> None:
    """setns(2): this thread, and the processes that it starts from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _die_with_us() -> None:
    """prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _out(*words: str, environment: dict[str, str] | None = None, check: bool = True) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout.strip()
