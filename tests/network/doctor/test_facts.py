"""What the machine says of itself, as it really says it, and as nobody would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.network.doctor import facts
from appliance.network.doctor.facts import Clock, NoProgram, Router, Sockets

# As iproute2 6.1 prints them.
ADDRESSES = """[{"ifindex":1,"ifname":"lo","flags":["LOOPBACK","UP","LOWER_UP"],"mtu":65536,"link_type":"loopback",
"addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8}]},
{"ifindex":2,"ifname":"eth0","flags":["BROADCAST","MULTICAST","UP","LOWER_UP"],"mtu":1500,"link_type":"ether",
"addr_info":[{"family":"inet","local":"192.168.1.20","prefixlen":24,"scope":"global"},
{"family":"inet6","local":"fe80::1","prefixlen":64,"scope":"link"},
{"family":"inet6","local":"fd00::2","prefixlen":64,"tentative":true,"dadfailed":true}]},
{"ifindex":3,"ifname":"eth1","flags":["NO-CARRIER","BROADCAST","UP"],"mtu":1500,"link_type":"ether","addr_info":[]},
{"ifindex":4,"ifname":"eth2","flags":["BROADCAST"],"mtu":1500,"link_type":"ether","addr_info":[]}]"""
ROUTES = """[{"dst":"default","gateway":"192.168.1.1","dev":"eth1","metric":200,"flags":[]},
{"dst":"default","gateway":"192.168.0.1","dev":"eth0","metric":100,"flags":[]},
{"dst":"default","dev":"ppp0","flags":[]}]"""
ROUTES_6 = '[{"dst":"default","gateway":"fe80::1","dev":"eth0","metric":1024,"flags":[]}]'

TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 0201A8C0:C350 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 20 4 30 10 -1
   2: 0100007F:1F90 0301A8C0:C350 06 00000000:00000000 00:00000000 00000000     0        0 1 1 0 20 4 30 10 -1
"""
TCP6 = """  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:20FB 00000000000000000000000000000000:0000 0A
   1: 0000000000000000FFFF00000100007F:20FB 0000000000000000FFFF00000201A8C0:C350 01
"""


def test_interfaces(tmp_path: Path) -> None:
    eth0, eth1, eth2 = facts.parse_addresses(ADDRESSES)
    assert (eth0.name, eth0.up, eth0.carrier, eth0.mtu, eth0.ethernet) == ("eth0", True, True, 1500, True)
    assert [str(each) for each in eth0.addresses] == ["192.168.1.20/24", "fe80::1/64"]
    assert eth0.duplicates == ("fd00::2",)
    assert (eth1.carrier, eth2.carrier) == (False, None)
    (tmp_path / "eth0/statistics").mkdir(parents=True)
    (tmp_path / "eth0/device").mkdir()
    for name, value in {"speed": "1000", "statistics/rx_errors": "3", "statistics/rx_packets": "9"}.items():
        (tmp_path / "eth0" / name).write_text(value + "\n")
    there = facts.with_facts_of(eth0, tmp_path)
    assert (there.hardware, there.speed_mbps, there.errors, there.packets) == (True, 1000, 3, 9)
    (tmp_path / "eth0/speed").write_text("-1\n")
    assert facts.with_facts_of(eth0, tmp_path).speed_mbps is None
    assert facts.with_facts_of(eth1, tmp_path).speed_mbps is None


def test_routers_and_neighbours() -> None:
    assert facts.parse_routers(ROUTES) == [Router("192.168.0.1", "eth0"), Router("192.168.1.1", "eth1")]
    assert facts.parse_routers(ROUTES_6) == [Router("fe80::1%eth0", "eth0")]
    assert facts.parse_neighbour('[{"dst":"192.168.1.1","lladdr":"0:1","state":["STALE"]}]') == "STALE"
    assert facts.parse_neighbour("") == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["ifname", "flags", "mtu", "addr_info", "local", "prefixlen", "gateway", "dev", "state"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(JSON.map(json.dumps) | st.text(max_size=300))
def test_whatever_ip_prints(text: str) -> None:
    for interface in facts.parse_addresses(text):
        assert 0 < len(interface.name) < 16
        assert "/" not in interface.name
    facts.parse_routers(text)
    assert isinstance(facts.parse_neighbour(text), str)


def test_sockets(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(TCP)
    (tmp_path / "tcp6").write_text(TCP6)
    found = facts.sockets(tmp_path / "tcp", tmp_path / "tcp6", tmp_path / "none")
    assert found == Sockets(
        frozenset({("127.0.0.1", 8080), ("::", 8443)}), ((8080, "192.168.1.2"), (8443, "192.168.1.2"))
    )
    listening = found.listening
    assert facts.listens(listening, "127.0.0.1", 8080)
    assert not facts.listens(listening, "192.168.1.20", 8080)
    assert facts.listens(listening, "192.168.1.20", 8443)
    assert facts.listens({("0.0.0.0", 1)}, "10.0.0.1", 1)
    assert not facts.listens({("0.0.0.0", 1)}, "fd00::1", 1)
    assert not facts.listens({("127.0.0.1", 1)}, "0.0.0.0", 1)


@given(st.lists(st.text("0123456789ABCDEF: ", max_size=120) | st.text(max_size=60), max_size=10))
def test_whatever_stands_in_the_table_of_sockets(lines: list[str]) -> None:
    found = facts.parse_sockets(lines)
    assert len(found.connected) + len(found.listening) <= len(lines)


def test_name_servers(tmp_path: Path) -> None:
    stub, behind = tmp_path / "resolv.conf", tmp_path / "behind"
    stub.write_text("# nameserver 9.9.9.9\nnameserver 127.0.0.53\noptions edns0\n")
    assert facts.name_servers(stub, behind) == ["127.0.0.53"]
    behind.write_text(
        "nameserver 192.168.1.1\nnameserver fe80::1%eth0\nnameserver router\nnameserver 192.168.1.1\n"
    )
    assert facts.name_servers(stub, behind) == ["192.168.1.1", "fe80::1%eth0"]
    assert facts.name_servers(tmp_path / "none", behind) == []


@given(st.text(max_size=300))
def test_whatever_stands_in_resolv_conf(text: str) -> None:
    assert len(facts.parse_resolv_conf(text)) <= facts.SERVERS_LIMIT
    assert isinstance(facts.parse_properties(text), dict)


def test_the_clock() -> None:
    assert facts.clock_of({}, {}) == Clock()
    state = facts.parse_properties("Timezone=Etc/UTC\nNTP=yes\nNTPSynchronized=no\n")
    sync = facts.parse_properties(
        "SystemNTPServers=\nFallbackNTPServers=0.debian.pool.ntp.org 1.debian.pool.ntp.org\n"
    )
    assert facts.clock_of(state, sync) == Clock(
        service=True, synchronised=False, servers=("0.debian.pool.ntp.org", "1.debian.pool.ntp.org")
    )


async def test_programs() -> None:
    assert await facts.run("echo", "here") == "here\n"
    with pytest.raises(NoProgram, match="no-such-program cannot be started"):
        await facts.run("no-such-program")
    with pytest.raises(NoProgram, match="sh says: why"):
        await facts.run("sh", "-c", "echo why >&2; exit 3")


async def test_a_program_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "PROGRAM_TIMEOUT_S", 0.1)
    with pytest.raises(NoProgram, match="takes longer"):
        await facts.run("sleep", "1000")
