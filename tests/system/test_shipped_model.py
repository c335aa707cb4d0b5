"""The chat model that ships keeps what its card says, on text that it never saw."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from appliance.inference import models
from appliance.inference.making.chat import evaluate
from appliance.inference.making.chat.corpus import HERE, Corpus

pytestmark = pytest.mark.system

MODEL = models.SHIPPED / "coral-reef-chat.gguf"


def test_held_out_text_shares_no_template_with_the_training_text() -> None:
    assert evaluate.shared_templates(Corpus()) == []


def test_held_out_sets_have_the_size_that_the_card_says() -> None:
    sizes = [len(evaluate.lines(name)) for name in ("appliance.jsonl", "unknowable.jsonl", "tools.jsonl")]
    assert sizes == [200, 50, 100]


def test_held_out_figures_are_those_of_the_card() -> None:
    """Greedy decoding is the same everywhere up to rounding: an answer or two may tip over on another processor."""
    card = MODEL.with_suffix(".md").read_text("utf-8")
    said = [
        int(good)
        for good in re.findall(r"^\|.*\| (\d+) of \d+ \([\d.]+ %\) \| \d+ % \|$", card, re.MULTILINE)
    ]
    command = [sys.executable, "-m", "appliance.inference.making.chat.evaluate", str(MODEL)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stderr
    measured = [int(good) for good in re.findall(r"^\w+: (\d+) of \d+ right", answer.stdout, re.MULTILINE)]
    assert len(said) == len(measured) == len(evaluate.GOALS)
    assert all(abs(here - there) <= 2 for here, there in zip(measured, said, strict=True)), answer.stdout


def test_every_goal_is_reached() -> None:
    """As the card says them."""
    card = MODEL.with_suffix(".md").read_text("utf-8")
    rows = re.findall(r"^\|.*?\| \d+ of \d+ \(([\d.]+) %\) \| .*? \| (\d+) % \|$", card, re.MULTILINE)
    assert len(rows) == 3
    for figure, goal in rows:
        assert float(figure) >= float(goal)


TOKENIZE = """
import http.client, json, os, socket, sys, tempfile
os.environ["OMP_WAIT_POLICY"] = "passive"
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx, params.cache_ram_mib = sys.argv[1], 1, 256, 0
path = tempfile.mkdtemp() + "/engine.sock"
params.hostnames, params.verbosity = [path], -1
server = xllamacpp.Server(params)
found = {}
for text in json.load(sys.stdin):
    connection = http.client.HTTPConnection("engine")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    body = json.dumps({"content": text, "add_special": False})
    connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
    found[text] = json.load(connection.getresponse())["tokens"]
print(json.dumps(found), flush=True)
os._exit(0)
"""


def test_the_engine_tokenizes_as_the_training_did() -> None:
    path = HERE / "token-samples.json"
    expected = json.loads(path.read_text("utf-8"))
    answer = subprocess.run(
        [sys.executable, "-c", TOKENIZE, str(MODEL)],
        input=json.dumps(list(expected)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(answer.stdout) == expected


def test_the_card_names_the_file_that_ships() -> None:
    (entry,) = (entry for entry in models.read_manifest(models.SHIPPED) if entry.name == "coral-reef-chat")
    assert entry.sha256 == models.digest(MODEL)
    card = MODEL.with_suffix(".md").read_text("utf-8")
    assert card.count("### ") == 10, "ten conversations"
    assert f"{entry.size_bytes / 1e6:.1f} MB" in card
