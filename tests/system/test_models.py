"""The owner's own model in a running appliance: loaded while replies go on, refused when broken, found when repaired."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from appliance.inference import library
from appliance.paths import Paths
from tests.inference.gguf_files import lora, shipped_model, without_chat_template
from tests.waiting import wait_for

from .booted import START_TIMEOUT_S, Booted, booted, configure, start
from .talk import Event, aiohttp_client, events_of, question
from .test_cli import check_refused, coral_reef

pytestmark = pytest.mark.system

STREAMS = 8


def add(appliance: Booted, name: str, *more: str, file: Path | None = None) -> None:
    done = coral_reef(appliance.state, "model", "add", str(file or shipped_model()), "--name", name, *more)
    assert done.returncode == 0, done


def workers(appliance: Booted) -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in appliance.text_workers()}


async def one_stream(session: aiohttp.ClientSession, begun: asyncio.Event) -> list[Event]:
    """A reply from beginning to end; `begun` is set when it is under way."""
    found: list[Event] = []
    async with session.post("/api/v1/chat/stream", json=question(max_tokens=2_000)) as response:
        assert response.status == 200, await response.text()
        async for event in events_of(response):
            found.append(event)
            if len(found) == 5:
                begun.set()
    return found


async def test_another_model_takes_over_and_no_stream_is_dropped(state: Path) -> None:
    configure(state, endless_model=True)
    with booted(state) as appliance:
        await asyncio.to_thread(add, appliance, "short")
        async with aiohttp_client(appliance) as session:
            begun = [asyncio.Event() for _ in range(STREAMS)]
            streams = [asyncio.create_task(one_stream(session, each)) for each in begun]
            for each in begun:
                await asyncio.wait_for(each.wait(), 60)
            loaded = await asyncio.to_thread(coral_reef, state, "model", "load", "short")
            assert loaded.returncode == 0, loaded
            assert "short writes the replies now: worker text-2, 1024 tokens a reply" in loaded.stdout
            assert "8 replies go on with the model before until they end" in loaded.stdout
            # New replies come from the new model, which ends its turns, while the old ones are still written.
            reply = await asyncio.to_thread(appliance.chat, max_tokens=2_000)
            assert reply["finish_reason"] == "stop"
            found = await asyncio.to_thread(workers, appliance)
            assert found["text-2"]["model"] == "short"
            assert found["text-1"]["detail"] == "replaced; finishes its replies"
            ends = [events[-1] for events in await asyncio.gather(*streams)]
        for end in ends:
            assert end["type"] == "done", end
            assert (end["payload"]["finish_reason"], end["payload"]["usage"]["completion_tokens"]) == (
                "length",
                2_000,
            )
        await asyncio.to_thread(
            wait_for, "the old worker is gone", lambda: set(workers(appliance)) == {"text-2"}
        )
        assert len(appliance.pids("worker text")) == 1
        status = await asyncio.to_thread(appliance.status)
        assert (status["model"], status["configured_model"], status["leases"]) == ("short", "endless", 0)
        shown = await asyncio.to_thread(coral_reef, state, "status")
        assert "short was chosen with 'coral-reef model load'; appliance.toml says endless" in shown.stdout
        assert "engine: xllamacpp " in shown.stdout
        check_refused(
            await asyncio.to_thread(coral_reef, state, "model", "remove", "short"),
            75,
            "load another one first",
        )
    # The choice outlives a restart.
    with booted(state) as appliance:
        assert await asyncio.to_thread(lambda: appliance.status()["model"]) == "short"
        back = await asyncio.to_thread(coral_reef, state, "model", "load", "endless", "--json")
        assert json.loads(back.stdout)["model"] == "endless"
        done = await asyncio.to_thread(coral_reef, state, "model", "remove", "short")
        assert done.returncode == 0, done
        assert not (state / "supervisor/model.json").exists()


def test_what_is_broken_is_refused_by_name_and_the_rest_goes_on(appliance: Booted, tmp_path: Path) -> None:
    data = shipped_model().read_bytes()
    half = tmp_path / "half.gguf"
    half.write_bytes(data[:-1000])
    state = appliance.state
    check_refused(coral_reef(state, "model", "add", str(half)), 65, f"{half}: 1000 of its {len(data)} bytes")
    # Damaged only after it was added: on the disk, say.
    add(appliance, "damaged")
    model = next(path for path in (state / "models").glob("damaged.*"))
    before = workers(appliance)
    for change, words in (
        (data[:-1000], f"has {len(data) - 1000} bytes"),
        (data[:-1] + bytes([data[-1] ^ 1]), "has the SHA-256"),
    ):
        model.write_bytes(change)
        check_refused(coral_reef(state, "model", "load", "damaged"), 1, "the model damaged: its file ", words)
    # A file with the right checksum that the engine does not load.
    nonsense = tmp_path / "nonsense.gguf"
    nonsense.write_bytes(data.replace(b"llama", b"lLAMA"))
    add(appliance, "nonsense", file=nonsense)
    check_refused(coral_reef(state, "model", "load", "nonsense"), 1, "the engine does not load it")
    check_refused(coral_reef(state, "model", "load", "nobody"), 1, "no model is called 'nobody'")
    assert coral_reef(state, "model", "verify").returncode == 65
    assert appliance.healthy()
    assert appliance.chat()["finish_reason"] == "stop"
    after = workers(appliance)
    assert set(after) == set(before)
    assert [each["pid"] for each in after.values()] == [each["pid"] for each in before.values()]


def test_the_same_name_anew(appliance: Booted, tmp_path: Path) -> None:
    """A newer file of the same name takes over only when it is loaded; one without a template chats too."""
    plain = tmp_path / "plain.gguf"
    plain.write_bytes(without_chat_template(shipped_model().read_bytes()))
    add(appliance, "mine", "--load")
    first = appliance.worker_pid()
    assert coral_reef(appliance.state, "model", "load", "mine").returncode == 0
    assert appliance.worker_pid() == first, "it is live already"
    add(appliance, "mine", "--replace", file=plain)
    assert appliance.worker_pid() == first
    assert appliance.chat()["finish_reason"] == "stop"
    assert coral_reef(appliance.state, "model", "load", "mine").returncode == 0
    wait_for("one worker is left", lambda: len(workers(appliance)) == 1)
    assert appliance.worker_pid() != first
    assert appliance.chat(max_tokens=20)["content"]


def test_one_load_at_a_time(appliance: Booted) -> None:
    for name in ("one", "two"):
        add(appliance, name)
    with ThreadPoolExecutor(2) as threads:
        done = list(
            threads.map(lambda name: coral_reef(appliance.state, "model", "load", name), ("one", "two"))
        )
    for each in done:
        assert each.returncode == 0 or "is being loaded: try again when that is done" in each.stderr, each
    assert any(each.returncode == 0 for each in done)
    assert appliance.status()["model"] in ("one", "two")
    assert appliance.chat()["finish_reason"] == "stop"


def test_a_model_found_broken_at_the_start_and_repaired(state: Path) -> None:
    configure(state, '[text]\nmodel = "mine"\n\n[scheduler]\nqueue_timeout_s = 0.5\n')
    model, _ = library.add(Paths.under(state), shipped_model(), name="mine")
    data = model.path.read_bytes()
    model.path.write_bytes(data[:1000])
    appliance = start(state, log_file=state / "log")
    try:
        wait_for("it greets", lambda: "Coral-Reef is up" in appliance.log, within_s=START_TIMEOUT_S)
        reason = "the model mine: its file mine."
        wait_for(
            "the reason shows in the status",
            lambda: reason in str(workers(appliance)),
            within_s=START_TIMEOUT_S,
        )
        health = httpx.get(f"{appliance.url}/health", timeout=15, trust_env=False)
        assert health.status_code == 503
        assert reason in health.json()["detail"]
        assert str(state) not in health.text
        with appliance.client() as client:
            refused = client.post("/api/v1/chat", json=question())
        assert refused.status_code == 503
        assert f"no model is loaded: {reason}" in refused.json()["detail"]
        greeting = appliance.log[appliance.log.index("Coral-Reef is up") :]
        assert reason in greeting
        # Repaired in its place, it is found without a restart of anything.
        supervisor = appliance.pids("supervisor")
        model.path.write_bytes(data)
        appliance.wait_until_healthy()
        assert appliance.chat()["finish_reason"] == "stop"
        assert appliance.pids("supervisor") == supervisor
        appliance.stop()
    finally:
        appliance.destroy()


def test_a_model_that_is_added_after_the_start(state: Path) -> None:
    configure(state, '[text]\nmodel = "mine"\n')
    appliance = start(state, log_file=state / "log")
    try:
        wait_for("it greets", lambda: "Coral-Reef is up" in appliance.log, within_s=START_TIMEOUT_S)
        wait_for(
            "the reason shows in the status",
            lambda: "no model is called 'mine'" in str(workers(appliance)),
            within_s=START_TIMEOUT_S,
        )
        add(appliance, "mine")
        appliance.wait_until_healthy()
        appliance.stop()
    finally:
        appliance.destroy()


async def test_an_adapter_of_the_owner(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "chef.gguf"
    file.write_bytes(lora())
    configure(state, endless_model=True)
    with booted(state) as appliance:
        added = await asyncio.to_thread(
            coral_reef, state, "model", "add", str(file), "--for", "endless", "--load"
        )
        assert added.returncode == 0, added
        assert "adapter of    endless" in added.stdout
        assert "endless writes the replies now: worker text-2" in added.stdout
        greedy: dict[str, Any] = {"max_tokens": 24, "temperature": 0}

        def say(**more: Any) -> str:
            return str(appliance.chat(**greedy, **more)["content"])

        plain = await asyncio.to_thread(say)
        assert await asyncio.to_thread(say, adapter="chef") != plain
        assert await asyncio.to_thread(say) == plain
        async with aiohttp_client(appliance) as session:
            async with session.post("/api/v1/chat", json=question(adapter="monk")) as refused:
                problem = await refused.json()
            assert (refused.status, problem["code"]) == (404, "unknown_adapter")
            assert "there are: chef" in problem["detail"]
            # One adapter at a time: who wants another waits, and says so.
            begun = asyncio.Event()
            running = asyncio.create_task(one_stream(session, begun))
            await asyncio.wait_for(begun.wait(), 60)
            async with session.post(
                "/api/v1/chat/stream", json=question(adapter="chef", **greedy)
            ) as response:
                events = [event async for event in events_of(response)]
            assert events[1]["payload"]["event"] == "queued", events[:3]
            assert events[-1]["type"] == "done"
            assert running.done()
            assert (await running)[-1]["type"] == "done"
        # Damaged on the disk: the model goes on without it.
        (copy,) = (state / "models").glob("chef.*")
        copy.write_bytes(file.read_bytes()[:-1])
        done = await asyncio.to_thread(coral_reef, state, "worker", "restart", "text-2")
        assert done.returncode == 0, done
        (repair,) = (await asyncio.to_thread(appliance.status))["repairs"]
        assert (repair["id"], repair["severity"]) == ("adapter_unusable:chef", "error")
        assert "manifest says" in repair["what"]
        assert await asyncio.to_thread(say) == plain
        with appliance.client() as client:
            answer = await asyncio.to_thread(client.post, "/api/v1/chat", json=question(adapter="chef"))
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_adapter")
        for command in (("remove", "chef"), ("load", "endless")):
            done = await asyncio.to_thread(coral_reef, state, "model", *command)
            assert done.returncode == 0, done
        assert not (await asyncio.to_thread(appliance.status))["repairs"]
        assert await asyncio.to_thread(say) == plain
