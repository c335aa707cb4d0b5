"""`coral-reef chat`, `status` and `model list`: in a terminal, in a pipe, and when something is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.endless import NAME, add_endless_model

from .booted import COMMAND, ROOT, Booted, booted, configure, environment
from .talk import events_in, question, session_of
from .terminal import CTRL_C, CTRL_D, Terminal, terminal

pytestmark = pytest.mark.system

PROMPT = r"you> "


def coral_reef(
    state: Path, *arguments: str, typed: str = "", more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, without a terminal."""
    return subprocess.run(
        [*COMMAND, *arguments, "--state", str(state)],
        cwd=ROOT,
        env=environment(more),
        input=typed,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def check_refused(finished: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One clear line on standard error, and the documented status."""
    assert finished.returncode == status, finished
    assert finished.stdout == "", finished
    lines = finished.stderr.splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("coral-reef: "), lines
    for word in words:
        assert word in lines[0], (word, lines)


@contextmanager
def chatting(appliance: Booted, *arguments: str) -> Iterator[Terminal]:
    """`coral-reef chat` in a terminal, at its first prompt."""
    command = [*COMMAND, "chat", "--state", str(appliance.state), *arguments]
    with terminal(command, cwd=ROOT, env=environment()) as found:
        found.expect(PROMPT)
        yield found


def seen(screen: Terminal) -> str:
    """What a person sees who looks now: what was written over is gone."""
    lines = []
    for line in screen.screen.split("\n"):
        cells: list[str] = []
        at = 0
        for each in line:
            if each == "\r":
                at = 0
            else:
                cells[at : at + 1] = each
                at += 1
        lines.append("".join(cells))
    return "\n".join(lines)


# --- in a terminal ------------------------------------------------------------------------------------------------


def test_a_conversation(appliance: Booted) -> None:
    with chatting(appliance, "finn") as screen:
        assert "You are talking to Finn." in screen.screen
        screen.type("Hello\n")
        reply = screen.expect(r"Finn> ([^\n]+)\n")
        assert len(reply.group(1).split()) > 1
        screen.expect(PROMPT)
        screen.type("/persona pike\n")
        screen.expect(r"You are talking to Pike\.")
        screen.expect(PROMPT)
        screen.type("Who are you?\n")
        screen.expect(r"Pike> [^\n]+\n")
        screen.expect(PROMPT)
        screen.type("/personas\n")
        for persona in ("coral", "finn", "marina", "pike", "pearl", "ray"):
            screen.expect(rf"\n{persona} +\w+ +\w")
        screen.expect(PROMPT)
        screen.type("/persona nobody\n")
        screen.expect(r"/persona NAME, one of: coral, finn")
        screen.expect(PROMPT)
        screen.type("/new\n")
        screen.expect(r"A new conversation\.")
        screen.expect(PROMPT)
        screen.type("/help\n")
        for word in ("/persona NAME", "/new", "/personas", "/quit", "Ctrl-C"):
            assert word in screen.expect(rf"(?s){word}").group()
        screen.expect(PROMPT)
        screen.type("\n")
        screen.expect(PROMPT)
        screen.type(CTRL_D)
        assert screen.wait() == 0
        assert "Traceback" not in screen.screen


def test_help_names_every_command_once(appliance: Booted) -> None:
    with chatting(appliance) as screen:
        assert "You are talking to Coral." in screen.screen
        screen.type("/help\n")
        screen.expect(PROMPT)
        for word in ("/persona NAME", "/personas", "/new", "/quit", "Ctrl-D", "Ctrl-C"):
            assert screen.screen.count(word) == (2 if word == "Ctrl-D" else 1), screen.screen
        screen.type("/quit\n")
        assert screen.wait() == 0


def test_a_reply_appears_as_it_is_written_and_ctrl_c_cancels_it(endless_appliance: Booted) -> None:
    with chatting(endless_appliance, "finn") as screen:
        screen.type("Hello\n")
        screen.expect(r"Finn> [^\n]{20,}")
        assert endless_appliance.status()["leases"] == 1, "it is shown before it is complete"
        screen.type(CTRL_C)
        screen.expect(r"\[cancelled\]\n")
        screen.expect(PROMPT)
        endless_appliance.wait_until_idle()
        # The conversation goes on.
        screen.type("And now?\n")
        screen.expect(r"Finn> [^\n]{20,}")
        screen.type(CTRL_C)
        screen.expect(r"\[cancelled\]\n")
        screen.expect(PROMPT)
        # At the prompt it only clears the line.
        screen.type("never sent")
        screen.expect(
            "never sent"
        )  # it is being edited: a Ctrl-C before that would be lost in the interpreter's input()
        screen.type(CTRL_C)
        screen.expect(PROMPT)
        screen.type(CTRL_D)
        assert screen.wait() == 0
        assert "Traceback" not in screen.screen
    endless_appliance.wait_until_idle()


def test_the_place_in_the_queue_is_shown_while_it_lasts(endless_appliance: Booted) -> None:
    """A second question of a conversation waits for the first."""
    with endless_appliance.client() as client, ExitStack() as first:
        response = first.enter_context(client.stream("POST", "/api/v1/chat/stream", json=question()))
        events = events_in(response.iter_lines())
        session = session_of([next(events)])
        with chatting(endless_appliance, "finn", "--session", session) as screen:
            for _ in range(2):
                screen.type("Hello\n")
                screen.expect(r"\[place 1 in the queue\]")
                screen.type(CTRL_C)
                screen.expect(r" \[cancelled\]\n")
                screen.expect(PROMPT)
            endless_appliance.wait_for_leases(1)
            assert "queue" not in seen(screen)
            screen.type("Hello\n")
            screen.expect(r"\[place 1 in the queue\]")
            first.close()
            screen.expect(r"\w{3}")
            screen.type(CTRL_C)
            screen.expect(r"\[cancelled\]\n")
            assert "queue" not in seen(screen)
            assert "Traceback" not in screen.screen
    endless_appliance.wait_until_idle()


def test_how_far_a_long_question_was_read_is_shown_while_it_lasts(state: Path) -> None:
    settings = f'[text]\nmodel = "{NAME}"\n[chat]\nmax_tokens = 30\n[gateway]\nmessage_limit_chars = 30000\n'
    configure(state, settings)
    add_endless_model(state / "models")

    def long_question(start: str) -> list[str]:
        return ["chat", "finn", "-m", f"{start} " + "tide and moon " * 1_800]

    with booted(state) as appliance:
        command = [*COMMAND, *long_question("First"), "--state", str(state)]
        with terminal(command, cwd=ROOT, env=environment()) as screen:
            screen.expect(r"\[reading, \d+ %\]")
            screen.type(CTRL_C)
            assert screen.wait() == 130
            assert "reading" not in seen(screen)
            assert "Traceback" not in screen.screen
        appliance.wait_until_idle()
        command = [*COMMAND, *long_question("Second"), "--state", str(state)]
        with terminal(command, cwd=ROOT, env=environment()) as screen:
            screen.expect(r"\[reading, \d+ %\]")
            assert screen.wait(within_s=90) == 0
            assert re.search(r"\w{3}", seen(screen))
            assert "reading" not in seen(screen)
        events = coral_reef(state, *long_question("Third"), "--json")
        assert '"progress"' in events.stdout
        finished = coral_reef(state, *long_question("Fourth"))
        assert finished.returncode == 0
        assert "\r" not in finished.stdout
        assert "[" not in finished.stdout.replace("[cut off: too long]", "")


def test_ctrl_c_ends_a_single_question(endless_appliance: Booted) -> None:
    command = [*COMMAND, "chat", "finn", "-m", "Hello", "--state", str(endless_appliance.state)]
    with terminal(command, cwd=ROOT, env=environment()) as screen:
        screen.expect(r"[^\n]{20,}")
        screen.type(CTRL_C)
        assert screen.wait() == 130
        assert "Traceback" not in screen.screen
    endless_appliance.wait_until_idle()


def test_the_appliance_may_end_while_somebody_chats(state: Path) -> None:
    with booted(state) as appliance, chatting(appliance) as screen:
        appliance.stop()
        screen.type("Hello\n")
        screen.expect(r"coral-reef: (lost|cannot reach) [^\n]+\n")
        screen.expect(PROMPT)
        screen.type(CTRL_D)
        assert screen.wait() == 69
        assert "Traceback" not in screen.screen


# --- in a pipe ----------------------------------------------------------------------------------------------------


def test_one_question(appliance: Booted) -> None:
    finished = coral_reef(appliance.state, "chat", "finn", "-m", "Hello")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert len(finished.stdout.split()) > 1
    assert finished.stdout.endswith("\n")
    assert finished.stdout.count("\n") == 1


def test_one_question_as_json(appliance: Booted) -> None:
    finished = coral_reef(appliance.state, "chat", "finn", "--json", "-m", "Hello")
    assert (finished.returncode, finished.stderr) == (0, "")
    events = [json.loads(line) for line in finished.stdout.splitlines()]
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-1]) == ("system", "done")
    assert set(kinds[1:-1]) == {"token", "persona_emotion"}
    # A script goes on with the conversation that it was told.
    session = events[0]["payload"]["data"]["session_id"]
    again = coral_reef(appliance.state, "chat", "finn", "--json", "--session", session, "-m", "Who are you?")
    assert again.returncode == 0
    first = json.loads(again.stdout.splitlines()[0])
    assert first["payload"]["data"]["session_id"] == session


def test_questions_from_a_pipe(appliance: Booted) -> None:
    finished = coral_reef(appliance.state, "chat", "finn", typed="Hello\n\nWho are you?\n")
    assert (finished.returncode, finished.stderr) == (0, "")
    lines = finished.stdout.splitlines()
    assert len(lines) == 2
    assert all(len(line.split()) > 1 for line in lines)
    assert "you>" not in finished.stdout


def test_questions_from_a_pipe_as_json(appliance: Booted) -> None:
    finished = coral_reef(appliance.state, "chat", "finn", "--json", typed="Hello\nWho are you?\n")
    assert finished.returncode == 0
    events = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [event["type"] for event in events].count("done") == 2
    sessions = {event["payload"]["data"]["session_id"] for event in events if event["type"] == "system"}
    assert len(sessions) == 1, "both are turns of one conversation"


def test_a_reader_that_goes_away_is_no_error(endless_appliance: Booted) -> None:
    command = [*COMMAND, "chat", "finn", "-m", "Hello", "--state", str(endless_appliance.state)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
    endless_appliance.wait_until_idle()


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("-m", "Hello"), ()], ids=["-m", "pipe"])
def test_an_unknown_persona(appliance: Booted, arguments: tuple[str, ...]) -> None:
    finished = coral_reef(appliance.state, "chat", "nobody", *arguments)
    check_refused(finished, 1, "nobody", "coral", "finn", "ray")


def test_a_wrong_key(appliance: Booted) -> None:
    wrong = appliance.state / "wrong.key"
    wrong.write_text("crk_nonsense\n", "ascii")
    for arguments in (("-m", "Hello"), ()):
        finished = coral_reef(appliance.state, "chat", "finn", *arguments, "--key-file", str(wrong))
        check_refused(finished, 77, "key")
        finished = coral_reef(appliance.state, "chat", *arguments, more={"CORAL_REEF_KEY": "nonsense"})
        check_refused(finished, 77, "key")
    missing = coral_reef(appliance.state, "chat", "-m", "Hello", "--key-file", str(appliance.state / "none"))
    check_refused(missing, 77, "--key-file")


@pytest.mark.parametrize(
    "key", ["kéy", "a\nb", "a b", "\x7f"], ids=["accent", "two lines", "space", "control"]
)
def test_a_key_that_is_none(appliance: Booted, key: str) -> None:
    """What lies in a key file by mistake is refused in a line, too."""
    wrong = appliance.state / "wrong.key"
    wrong.write_text(key, "utf-8")
    check_refused(coral_reef(appliance.state, "chat", "-m", "Hello", "--key-file", str(wrong)), 77)
    check_refused(coral_reef(appliance.state, "chat", "-m", "Hello", more={"CORAL_REEF_KEY": key}), 77)


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://127.0.0.1:1", 69),
        ("nonsense", 69),
        ("http://[::1", 2),
        ("http://127.0.0.1:99999", 69),
        ("ftp://x", 69),
    ],
)
def test_an_address_where_nobody_answers(appliance: Booted, url: str, status: int) -> None:
    for arguments in (("-m", "Hello"), ()):
        finished = coral_reef(appliance.state, "chat", "--url", url, *arguments, typed="Hello\n")
        check_refused(finished, status)


def test_nothing_runs(state: Path) -> None:
    check_refused(coral_reef(state, "status"), 69, str(state), "make run")
    check_refused(coral_reef(state, "status", "--json"), 69, str(state), "make run")
    check_refused(coral_reef(state, "chat", "-m", "Hello"), 69, str(state), "make run")


@pytest.mark.parametrize(
    "arguments", [(), ("dance",), ("chat", "--what"), ("run", "--port", "many"), ("run", "--port", "65536")]
)
def test_wrong_use(arguments: tuple[str, ...]) -> None:
    finished = subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert "usage: coral-reef" in finished.stderr
    assert "Traceback" not in finished.stderr


# --- status and models --------------------------------------------------------------------------------------------


def test_status(appliance: Booted) -> None:
    finished = coral_reef(appliance.state, "status")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert re.search(
        r"is ready: \d of 2 workers ready \(coral-reef-chat\b[^)]*\); mode local", finished.stdout
    )
    assert "text-1" in finished.stdout
    assert "coral-reef-chat" in finished.stdout
    assert "warning" not in finished.stdout


def test_status_as_json(appliance: Booted) -> None:
    finished = coral_reef(appliance.state, "status", "--json")
    assert (finished.returncode, finished.stderr) == (0, "")
    status = json.loads(finished.stdout)
    assert status["ready"] is True
    assert status["pid"] in appliance.pids("supervisor")
    text, *_ = status["workers"]
    assert (text["kind"], text["state"]) == ("text", "ready")
    assert text["pid"] in appliance.pids("worker text")


def test_models(appliance: Booted) -> None:
    finished = coral_reef(appliance.state, "model", "list")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "coral-reef-chat" in finished.stdout
    assert "text-1" in finished.stdout
    listed = json.loads(coral_reef(appliance.state, "model", "list", "--json").stdout)
    assert all(model["shipped"] for model in listed)
    assert [model["name"] for model in listed if "text-1" in model["loaded_by"]] == ["coral-reef-chat"]


def test_models_while_nothing_runs(state: Path) -> None:
    finished = coral_reef(state, "model", "list")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "coral-reef-chat" in finished.stdout
    listed = json.loads(coral_reef(state, "model", "list", "--json").stdout)
    assert {model["name"]: model["loaded_by"] for model in listed} == {
        "coral-reef-chat": [],
        "coral-reef-embedding": [],
        "coral-reef-emotion": [],
    }


def test_models_of_the_owner(endless_appliance: Booted) -> None:
    listed = json.loads(coral_reef(endless_appliance.state, "model", "list", "--json").stdout)
    text = {
        model["name"]: (model["loaded_by"], model["shipped"]) for model in listed if model["kind"] == "text"
    }
    assert text == {"coral-reef-chat": ([], True), "endless": (["text-1"], False)}


def test_the_version() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "appliance", "--version"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert finished.stdout.startswith("coral-reef 0.")
