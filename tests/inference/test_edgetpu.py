"""libedgetpu through its C interface, with the stand-in for it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from appliance.inference.edgetpu import Found, LibEdgeTpu, PyCoral, look, probe, runtime
from appliance.inference.errors import EdgeTpuFailed, EdgeTpuGone, LibraryUnusable
from appliance.inference.tensor_models import Runner, load, on_cpu, on_tpu
from appliance.wire.messages import TpuBus
from tests.edgetpu.stand_in import Fake, StandIn, write_model
from tests.waiting import wait_for, wait_until_gone

FAKES = [Fake("usb-1-1.2"), Fake("usb-2-1"), *(Fake(f"pci-{number}") for number in range(6))]


@pytest.fixture
def library(stand_in: StandIn) -> LibEdgeTpu:
    stand_in.tell(*FAKES)
    stand_in.log.unlink(missing_ok=True)
    return LibEdgeTpu()


def test_a_listing_has_no_order(stand_in: StandIn, library: LibEdgeTpu) -> None:
    listings = [tuple(found.path for found in library.list()) for _ in range(10)]
    assert {frozenset(each) for each in listings} == {frozenset(fake.path for fake in FAKES)}
    assert len(set(listings)) > 1


def test_each_is_found_wherever_it_stands(library: LibEdgeTpu) -> None:
    for fake in FAKES * 3:
        assert look(library, fake.bus, fake.node, fake.id) == Found(fake.bus, fake.path)


def test_one_that_is_not_there_is_not_opened(stand_in: StandIn, library: LibEdgeTpu) -> None:
    stand_in.tell(*FAKES[1:], Fake("usb-1-1.2", "absent"))
    with pytest.raises(EdgeTpuGone, match=r"usb-1-1\.2"):
        look(library, TpuBus.USB, FAKES[0].node, FAKES[0].id)
    assert stand_in.heard("open") == 0


def test_a_tpu_gives_what_the_twin_gives(stand_in: StandIn, library: LibEdgeTpu, tmp_path: Path) -> None:
    loaded, refused = load([write_model(tmp_path)])
    assert not refused
    model = loaded["m"]
    rows = np.random.default_rng(3).integers(-128, 128, (50, model.input_bytes), dtype=np.int8)
    runners = [
        on_cpu(model),
        *(on_tpu(model.model.compiled, library, Found(fake.bus, fake.path)) for fake in FAKES[:3]),
    ]
    outputs = [runner.run(rows, lambda: None) for runner in runners]
    assert all((each == outputs[0]).all() for each in outputs)
    assert outputs[0].std() > 1
    assert stand_in.heard("invoke", FAKES[0]) == len(rows)


def test_opening_holds_nobody_up(stand_in: StandIn, library: LibEdgeTpu, tmp_path: Path) -> None:
    """LiteRT's own `load_delegate` would stop every thread of the worker for 3.2 s."""
    stand_in.tell(*FAKES, open_ms=1000)
    model = load([write_model(tmp_path)])[0]["m"]
    opened: list[Runner] = []
    thread = threading.Thread(
        target=lambda: opened.append(
            on_tpu(model.model.compiled, library, Found(FAKES[0].bus, FAKES[0].path))
        )
    )
    thread.start()
    rounds = 0
    while not opened:
        time.sleep(0.001)
        rounds += 1
    thread.join()
    assert rounds > 20


def test_no_library() -> None:
    with pytest.raises(LibraryUnusable, match="install libedgetpu1-std"):
        LibEdgeTpu("libedgetpu-that-nobody-has.so.1")


def test_another_library() -> None:
    with pytest.raises(LibraryUnusable, match="edgetpu_version"):
        LibEdgeTpu("libm.so.6")


class TestProbe:
    """Another process tries the library first."""

    def probe(self, stand_in: StandIn, folder: Path, fake: Fake) -> None:
        model = write_model(folder)
        probe(fake.bus, fake.node, fake.id, Path(model.compiled))

    def test_all_is_well(self, stand_in: StandIn, tmp_path: Path) -> None:
        stand_in.tell(*FAKES)
        stand_in.log.unlink(missing_ok=True)
        self.probe(stand_in, tmp_path, FAKES[0])
        assert [stand_in.heard(what, FAKES[0]) for what in ("open", "invoke")] == [1, 1]

    def test_it_ends_with_whoever_asked(self, stand_in: StandIn, tmp_path: Path) -> None:
        """A worker that is ended in the middle leaves nobody who has its TPU open."""
        fake = Fake("usb-2-1", "wedge")
        stand_in.tell(fake)
        before = stand_in.heard("invoke", fake)
        model = write_model(tmp_path)
        code = (
            "from pathlib import Path; from appliance.inference.edgetpu import probe;"
            f"probe({str(fake.bus)!r}, {fake.node!r}, {fake.id!r}, Path({model.compiled!r}))"
        )
        with subprocess.Popen([sys.executable, "-c", code]) as worker:
            wait_for("it runs", lambda: stand_in.heard("invoke", fake) > before)
            (child,) = psutil.Process(worker.pid).children()
            worker.kill()
        wait_until_gone(child.pid)

    def test_a_library_that_crashes(self, stand_in: StandIn, tmp_path: Path) -> None:
        stand_in.tell(Fake("pci-0", "crash"))
        with pytest.raises(
            LibraryUnusable, match="crashes with SIGSEGV: it was built for another TensorFlow"
        ):
            self.probe(stand_in, tmp_path, FAKES[2])

    def test_a_tpu_that_fails(self, stand_in: StandIn, tmp_path: Path) -> None:
        stand_in.tell(Fake("pci-0", "error"))
        with pytest.raises(EdgeTpuFailed, match="USB transfer error"):
            self.probe(stand_in, tmp_path, FAKES[2])

    def test_a_tpu_that_is_gone(self, stand_in: StandIn, tmp_path: Path) -> None:
        stand_in.tell()
        with pytest.raises(EdgeTpuFailed, match="does not see pci-0"):
            self.probe(stand_in, tmp_path, FAKES[2])

    def test_no_library(self, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        with pytest.raises(LibraryUnusable, match="install libedgetpu1-std"):
            self.probe(stand_in, tmp_path, FAKES[2])


class GooglesEdgeTpu(types.ModuleType):
    """What `pycoral.utils.edgetpu` has, over the stand-in; its listing is the library's, and it opens by index."""

    def __init__(self, library: LibEdgeTpu) -> None:
        super().__init__("pycoral.utils.edgetpu")
        self._library = library
        self._listing: list[Found] = []
        self.opened: list[str] = []

    def list_edge_tpus(self) -> list[dict[str, str]]:
        self._listing = list(self._library.list())
        return [
            {"type": "usb" if each.bus is TpuBus.USB else "pci", "path": each.path} for each in self._listing
        ]

    def make_interpreter(self, model: str, device: str) -> Any:
        kind, _, index = device.partition(":")
        bus = TpuBus.USB if kind == "usb" else TpuBus.PCIE
        tpu = [each for each in self._listing if each.bus is bus][int(index)]
        self.opened.append(tpu.path)
        return self._library.interpreter(tpu, Path(model))


def test_googles_pycoral_is_used(
    stand_in: StandIn, library: LibEdgeTpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    google = GooglesEdgeTpu(library)
    monkeypatch.setitem(sys.modules, "pycoral", types.ModuleType("pycoral"))
    monkeypatch.setitem(sys.modules, "pycoral.utils", types.ModuleType("pycoral.utils"))
    monkeypatch.setitem(sys.modules, "pycoral.utils.edgetpu", google)
    found = runtime()
    assert isinstance(found, PyCoral)
    model = load([write_model(tmp_path)])[0]["m"]
    for fake in FAKES * 2:
        on_tpu(model.model.compiled, found, look(found, fake.bus, fake.node, fake.id))
    assert google.opened == [fake.path for fake in FAKES * 2]
    with pytest.raises(EdgeTpuGone):
        found.interpreter(Found(TpuBus.PCIE, "/dev/apex_99"), Path(model.model.compiled))


def test_the_other_pycoral_is_not(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project of that name on PyPI."""
    monkeypatch.setitem(sys.modules, "pycoral", types.ModuleType("pycoral"))
    monkeypatch.setitem(sys.modules, "pycoral.utils", types.ModuleType("pycoral.utils"))
    monkeypatch.setitem(sys.modules, "pycoral.utils.edgetpu", types.ModuleType("pycoral.utils.edgetpu"))
    assert isinstance(runtime(), LibEdgeTpu)
