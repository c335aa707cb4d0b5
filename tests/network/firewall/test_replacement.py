"""Our table is replaced in one step, and others' tables are none of our business."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.network.errors import CommandFailed
from appliance.network.firewall.nft import TABLE
from appliance.network.firewall.rules import firewall_of
from appliance.network.firewall.table import CHANGED, Table
from tests.network.firewall.lab import FAMILIES, TCP, Lab, Observer, lab, ports_of, settings, swept
from tests.waiting import wait_for

pytestmark = pytest.mark.system

OTHERS = """
table inet somebody {
    chain input {
        type filter hook input priority 5; policy accept;
        counter comment "theirs"
    }
}
table ip nat {
    chain postrouting {
        type nat hook postrouting priority 100;
        oifname "eth9" masquerade
    }
}
table inet coral_reef_usb {
    chain input {
        type filter hook input priority -10;
        iifname "usb0" tcp dport 5432 drop
    }
}
"""

#: One that allows something else, so that each replacement changes the rules.
ONE = settings("mode: server")
OTHER = settings(
    "mode: p2p_hub", rules=[{"name": "nobody's", "action": "drop", "networks": ["192.0.2.0/24"]}]
)

REPLACEMENTS = 100


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as found:
        yield found


class Traffic:
    """What goes on between a client and the tower, each in a thread of its own: new connections to the API, knocks at a port that
    is closed, and words on a connection that is older than all of them."""

    def __init__(self, place: Lab, version: int) -> None:
        self.home, self.failures = place.sides["home"], list[str]()
        self.counts = {"connected": 0, "knocked": 0, "echoed": 0}
        self._target, self._family = self.home.tower[version], FAMILIES[version]
        self._stop = threading.Event()
        self._sockets = ExitStack()
        with place.tower.here():
            # Somebody listens at the closed one, too.
            self._api, _ = (
                self._sockets.enter_context(
                    socket.create_server((self._target, port), family=self._family, backlog=1024)
                )
                for port in (8080, 5432)
            )
        with self.home.net.here():
            self._near = self._sockets.enter_context(
                socket.create_connection((self._target, 8080), timeout=30)
            )
        self._far = self._sockets.enter_context(self._api.accept()[0])
        self._far.settimeout(30)
        self._threads = [
            threading.Thread(target=self._until_stopped, args=(each,))
            for each in (self._connect, self._knock, self._echo)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._sockets.close()

    def _until_stopped(self, act: Callable[[], str]) -> None:
        with self.home.net.here():
            while not self._stop.is_set():
                try:
                    self.counts[act()] += 1
                except OSError as error:
                    self.failures.append(f"{act.__name__}: {error}")
                    return

    def _connect(self) -> str:
        socket.create_connection((self._target, 8080), timeout=30).close()
        self._api.accept()[0].close()
        return "connected"

    def _knock(self) -> str:
        with socket.socket(self._family) as knocking:
            knocking.setblocking(False)
            knocking.connect_ex((self._target, 5432))
        return "knocked"

    def _echo(self) -> str:
        for one, other in ((self._near, self._far), (self._far, self._near)):
            one.sendall(b"still there?")
            if other.recv(64) != b"still there?":
                raise ConnectionError("it has ended")
        return "echoed"


@pytest.mark.parametrize("version", [4, 6])
def test_nothing_passes_and_nobody_is_cut_off_while_it_is_replaced(place: Lab, version: int) -> None:
    place.load(ONE)
    texts = [firewall_of(each, place.zones()).text() for each in (ONE, OTHER)]
    with Observer(place.tower, version, TCP) as observer, Traffic(place, version) as traffic:
        ports: set[int] = set()
        for number in range(REPLACEMENTS):
            place.table.load(texts[number % 2])
            ports |= ports_of(observer.heard(traffic.home.addresses[version]))
        before = dict(traffic.counts)
        wait_for(
            "everything goes on after the last",
            lambda: traffic.failures or all(traffic.counts[name] > before[name] for name in before),
        )
        assert not traffic.failures
        assert ports | ports_of(observer.heard(traffic.home.addresses[version])) == {8080}


def test_other_tables_stay(place: Lab) -> None:
    place.tower.run("nft", "-f", "-", stdin=OTHERS)
    before = place.tower.run("nft", "-s", "list", "ruleset")
    for network in (ONE, OTHER):
        place.load(network)
    tables = place.tower.run("nft", "list", "tables").splitlines()
    assert sorted(tables) == [
        "table inet coral_reef",
        "table inet coral_reef_usb",
        "table inet somebody",
        "table ip nat",
    ]
    place.load(settings("", enabled=False))
    assert place.tower.run("nft", "-s", "list", "ruleset") == before
    place.load(settings("", enabled=False))
    assert place.tower.run("nft", "-s", "list", "ruleset") == before


def test_a_table_that_cannot_be_loaded_leaves_the_old_one(place: Lab) -> None:
    firewall = place.load(ONE)
    with pytest.raises(CommandFailed, match=r"nft -f -: .*Error"):
        place.table.load(firewall.text().replace("tcp dport 22 ", "tcp dport 22 nonsense "))
    assert place.table.standing() == firewall.text()


@pytest.mark.parametrize(
    "change",
    [
        f"insert rule inet {TABLE} input accept",
        f"delete rule inet {TABLE} input handle HANDLE",
        f'add element inet {TABLE} attached_to4 {{ "eth9" . 10.99.0.0/24 }}',
        f"delete element inet {TABLE} attached4 {{ 10.1.0.0/24 }}",
        f"chain inet {TABLE} input {{ policy accept; }}",
        f"add chain inet {TABLE} mine {{ type filter hook input priority -300; }}",
        f"flush table inet {TABLE}",
    ],
)
def test_what_somebody_changed_is_noticed(place: Lab, change: str) -> None:
    text = place.load(ONE).text()
    assert place.table.standing() == text
    listing = place.tower.run("nft", "-a", "list", "chain", "inet", TABLE, "input")
    handle = next(line for line in listing.splitlines() if "in.ssh" in line).rpartition(" ")[2]
    place.tower.run("nft", change.replace("HANDLE", handle))
    found = place.table.standing()
    assert found.startswith(CHANGED)
    assert found != text
    # A roll-back can restore even that.
    listing = place.tower.run("nft", "-s", "list", "table", "inet", TABLE)
    place.table.load(text)
    assert place.table.standing() == text
    place.table.load(found)
    assert place.tower.run("nft", "-s", "list", "table", "inet", TABLE) == listing


def test_one_that_was_taken_away(place: Lab, tmp_path: Path) -> None:
    text = place.load(ONE).text()
    place.tower.run("nft", "delete", "table", "inet", TABLE)
    assert place.table.standing() == ""
    assert place.table.counters() == {}
    place.table.load(text)
    # Who starts anew knows it again; without the record it is a stranger's.
    assert Table(tmp_path / "firewall.json", place.tower.run).standing() == text
    (tmp_path / "firewall.json").write_bytes(b"\xff{")
    assert Table(tmp_path / "firewall.json", place.tower.run).standing().startswith(CHANGED)


def test_what_is_loaded_at_boot(place: Lab, tmp_path: Path) -> None:
    """A file that nft takes as it is, before any program of ours runs; without a firewall, none."""
    at_boot = tmp_path / "firewall.nft"
    table = Table(tmp_path / "firewall.json", place.tower.run, at_boot=at_boot)
    text = firewall_of(ONE, place.zones()).text()
    table.load(text)
    place.tower.run("nft", "delete", "table", "inet", TABLE)
    place.tower.run("nft", "-f", str(at_boot))
    assert table.standing() == text
    table.load("")
    assert not at_boot.exists()


def test_traffic_is_no_change_and_is_counted(place: Lab) -> None:
    text = place.load(ONE).text()
    home = place.sides["home"]
    swept(home.net, home.addresses[4], place.tower, home.tower[4], TCP, [8080, 8443, *range(2000, 2100)])
    counters = place.table.counters()
    assert counters["in.api"].packets == 2
    assert counters["in.rest"].packets == 100
    assert counters["in.rest"].size_bytes >= 100 * 40
    # 20 at once, then 10 a minute.
    assert 20 <= counters["in.log"].packets <= 40
    assert place.table.standing() == text
