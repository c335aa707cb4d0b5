"""Profiles and a firewall for the tests that change a real network, and a child that does it and may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.network.errors import CommandFailed
from appliance.network.networkmanager import NetworkManager
from appliance.network.plan import plan
from appliance.network.profiles import Current, Desired, Profile, Settings, owned
from appliance.network.transaction import Transaction
from appliance.system_bus import Bus

TABLE = "coral_reef_test"

#: Old and new.
FIREWALL = f"table inet {TABLE} {{ chain input {{ type filter hook input priority 0; policy accept; tcp dport 22 accept; }}; }}"
OTHER_FIREWALL = FIREWALL.replace("22", "8080")


class NftTable:
    """One table of the kernel's real firewall. What was loaded stands in its comment's place: a file beside."""

    def __init__(self, folder: Path) -> None:
        self._loaded = folder / "loaded.nft"

    async def load(self, rules: str) -> None:
        await self._nft(f"table inet {TABLE}\ndelete table inet {TABLE}\n{rules}")
        self._loaded.write_text(rules, "utf-8")

    async def remove(self) -> None:
        await self._nft(f"table inet {TABLE}\ndelete table inet {TABLE}\n")
        self._loaded.unlink(missing_ok=True)

    async def current(self) -> str:
        listed = await asyncio.create_subprocess_exec(
            "nft",
            "list",
            "table",
            "inet",
            TABLE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        there = await listed.wait() == 0
        return self._loaded.read_text("utf-8") if there and self._loaded.exists() else ""

    async def _nft(self, text: str) -> None:
        process = await asyncio.create_subprocess_exec(
            "nft", "-f", "-", stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        _, error = await process.communicate(text.encode())
        if process.returncode != 0:
            raise CommandFailed(f"nft: {error.decode('utf-8', 'replace')}")


def ethernet(
    number: int, address: str = "", *, role: str = "", gateway: str = "", mtu: int = 0, ipv6: str = ""
) -> Profile:
    """For reefNUMBER; without an address, by DHCP."""
    role = role or ("primary", "secondary")[number]
    settings: Settings = {
        "connection": {
            "type": "802-3-ethernet",
            "id": f"Coral-Reef {role}",
            "interface-name": f"reef{number}",
            "autoconnect-priority": 100,
            "autoconnect-retries": 0,
            "mdns": 2,
        },
        "802-3-ethernet": {"mtu": mtu},
        "ipv4": {
            "method": "manual",
            "address-data": [address],
            "gateway": gateway,
            "route-metric": 100 + number,
        }
        if address
        else {"method": "auto"},
        "ipv6": {"method": "manual", "address-data": [ipv6]} if ipv6 else {"method": "disabled"},
    }
    return Profile(role, f"reef{number}", owned(settings))


async def read(manager: NetworkManager, firewall: NftTable) -> Current:
    current = await manager.current()
    return Current(current.profiles, current.devices, await firewall.current())


async def change(
    desired: Desired,
    folder: Path,
    *,
    observer: Callable[[str], None] = lambda step: None,
    strict: bool = False,
    confirms: bool = False,
) -> None:
    """Plans and does it, in this process. `confirms`: it is asked for a confirmation, and gets it."""
    async with Bus() as bus:
        manager, firewall = NetworkManager(bus), NftTable(folder)
        steps = plan(desired, await read(manager, firewall))

        def observe(step: str) -> None:
            observer(step)
            if step.startswith("wait"):
                transaction.confirm()

        transaction = Transaction(
            manager,
            firewall,
            folder / "record",
            steps,
            strict=strict,
            confirm_s=60.0 if confirms else 0.0,
            observer=observe,
        )
        await transaction.run()


#: The two states of the tests of kills: another address and MTU on one port, one port gone, one that is new, other rules.
OLD = Desired((ethernet(0, "10.70.0.2/24", gateway="10.70.0.1"), ethernet(1, "10.71.0.2/24")), FIREWALL)
NEW = Desired(
    (ethernet(0, "10.70.0.3/24", gateway="10.70.0.1", mtu=1400), ethernet(2, "10.72.0.2/24", role="cluster")),
    OTHER_FIREWALL,
)


def main(arguments: Sequence[str]) -> None:
    """FOLDER KILL_AT: from OLD to NEW, killed before the step of this number; each step is told on the standard output."""
    folder, kill_at = Path(arguments[0]), int(arguments[1])
    count = 0

    def observe(step: str) -> None:
        nonlocal count
        count += 1
        print(json.dumps(step), flush=True)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(change(NEW, folder, observer=observe, confirms=True))


if __name__ == "__main__":
    main(sys.argv[1:])
