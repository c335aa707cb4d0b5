"""Measures a chat model on text it never saw: `python -m appliance.inference.making.chat.evaluate FILE.gguf`.

Three sets in `heldout/`, written by somebody who had not read the training text, and checked to share no template with it: 200
questions on the appliance (right: every pattern of the fact is in the answer), 50 that nobody in the tower can know (right: the
answer says so) and 100 requests for tools (right: one call with the right name and arguments, and nothing else). Each item is a
conversation of its own; the personas take turns.
"""

from __future__ import annotations

import argparse
import ast
import json
import operator
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .corpus import HERE, TOOL_NAMES, Corpus, Message

HELDOUT = HERE / "heldout"

#: What each set should reach, in per cent.
GOALS = {"appliance": 80, "unknowable": 90, "tools": 95}

#: How a persona says that it does not know.
DECLINES = re.compile(r"\b(do not|don't|cannot) know\b|\bno idea\b", re.IGNORECASE)

#: answer(system prompt, user's message, names of tools offered) -> what the model said
Answer = Callable[[str, str, tuple[str, ...]], str]


@dataclass(frozen=True)
class Item:
    """One held-out message and how its answer was judged."""

    kind: str
    persona: str
    asked: str
    answer: str
    right: bool


def lines(name: str) -> list[dict[str, Any]]:
    """Reads a held-out file."""
    return [json.loads(line) for line in (HELDOUT / name).read_text("utf-8").splitlines() if line]


def normal(text: str) -> str:
    """Lower case, single spaces, without punctuation."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def value(expression: str) -> float | None:
    """The value of an arithmetic expression of numbers and + - * /; None when it is anything else."""
    signs: dict[type[ast.operator], Callable[[float, float], float]] = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
    }

    def walk(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp) and type(node.op) in signs:
            return signs[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        raise ValueError(ast.dump(node))

    try:
        return walk(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def called(answer: str) -> dict[str, Any] | None:
    """The one tool call that the answer is, or None."""
    match = re.fullmatch(r"<tool_call>(.*)</tool_call>", answer.strip(), re.DOTALL)
    if not match:
        return None
    try:
        call = json.loads(match[1])
    except json.JSONDecodeError:
        return None
    return call if isinstance(call, dict) and set(call) == {"name", "arguments"} else None


def right_call(item: dict[str, Any], answer: str) -> bool:
    """Whether the answer is the call that `item` wants."""
    call = called(answer)
    if call is None or call["name"] != item["tool"]:
        return False
    wanted, given = item["arguments"], call["arguments"]
    if not isinstance(given, dict) or set(given) != set(wanted):
        return False
    if "expression" in wanted:
        return value(given["expression"]) == value(wanted["expression"])
    if "contains" in item:
        (text,) = given.values()
        words = normal(str(text)).split()
        return normal(str(text)) in normal(item["request"]) and all(
            part in words for word in item["contains"] for part in normal(word).split()
        )
    return bool(given == wanted)


def judge(corpus: Corpus, answer: Answer) -> Iterator[Item]:
    """Asks everything and judges each answer."""
    must = {fact["id"]: fact["must"] for fact in corpus.facts}
    for number, item in enumerate(lines("appliance.jsonl")):
        persona = corpus.personas[number % len(corpus.personas)]
        said = answer(persona["system"], item["question"], ())
        right = all(re.search(pattern, said, re.IGNORECASE) for pattern in must[item["fact"]])
        yield Item("appliance", persona["id"], item["question"], said, right)
    for number, item in enumerate(lines("unknowable.jsonl")):
        persona = corpus.personas[number % len(corpus.personas)]
        said = answer(persona["system"], item["question"], ())
        yield Item("unknowable", persona["id"], item["question"], said, bool(DECLINES.search(said)))
    for number, item in enumerate(lines("tools.jsonl")):
        persona = corpus.personas[number % len(corpus.personas)]
        said = answer(persona["system"], item["request"], TOOL_NAMES)
        yield Item("tools", persona["id"], item["request"], said, right_call(item, said))


def shared_templates(corpus: Corpus) -> list[str]:
    """Held-out messages that are a training template with its slots filled: there must be none."""
    names = sorted((p["id"] for p in corpus.personas), key=len, reverse=True)
    words = sorted(
        ((word, slot) for slot, group in corpus.slots.items() for word in group),
        key=lambda pair: -len(pair[0]),
    )

    def mask(text: str) -> str:
        text = " ".join(re.sub(r"[^\w\s{}*/+-]", " ", text.lower()).split())
        for word, slot in words:
            text = re.sub(rf"\b{re.escape(word)}\b", "{" + slot + "}", text)
        text = re.sub(
            r"\b(\d+ (minutes?|mins?|hours?)|(half )?an hour|(a )?quarter of an hour)\b", "{duration}", text
        )
        text = re.sub(r"\b\d+\b|\{(a|b|tray)\}", "#", text)
        return re.sub(rf"\b({'|'.join(names)})\b", "{persona}", text)

    templates = {mask(line) for line in corpus.templates()}
    shared = []
    for name in ("appliance.jsonl", "unknowable.jsonl", "tools.jsonl"):
        for item in lines(name):
            asked = item.get("question") or item["request"]
            free = [str(v) for k, v in item.get("arguments", {}).items() if k in ("query", "text")]
            filled = asked
            for key, span in zip(("query", "text"), free * 2, strict=False):
                filled = re.sub(re.escape(span), "{" + key + "}", filled, flags=re.IGNORECASE)
                if mask(filled) in templates:
                    shared.append(asked)
                filled = asked
            if mask(asked) in templates:
                shared.append(asked)
    return shared


class Engine:
    """The model in llama.cpp's server core, as the text worker runs it."""

    def __init__(self, model: Path) -> None:
        # Set before the engine is loaded: active waiting makes two threads on a busy host collapse.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = 1024
        params.n_parallel = 1
        params.cache_ram_mib = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.hostnames = [tempfile.mkdtemp(prefix="evaluate-") + "/engine.sock"]
        params.force_pure_content_parser = True  # what the model says is judged to the letter
        params.verbosity = -1
        self._server = xllamacpp.Server(params)

    def answer(
        self,
        system: str,
        said: list[Message],
        tools: tuple[str, ...],
        temperature: float,
        top_p: float,
    ) -> str:
        """The next thing that the persona says after `said`, with the tools of these names offered."""
        turns = [{"role": message.role, "content": message.content} for message in said]
        request: dict[str, Any] = {
            "messages": [{"role": "system", "content": system}, *turns],
            "max_tokens": 96,
            "temperature": temperature,
            "top_p": top_p,
            "seed": 1,
        }
        if tools:
            functions = [{"name": name, "parameters": {"type": "object"}} for name in tools]
            request["tools"] = [{"type": "function", "function": each} for each in functions]
        reply = self._server.handle_chat_completions(request)
        if "choices" not in reply:
            raise RuntimeError(f"the engine answered {reply}")
        return str(reply["choices"][0]["message"].get("content") or "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--temperature", type=float, default=0.0, help="default: greedy")
    parser.add_argument("--wrong", action="store_true", help="print every wrong answer")
    arguments = parser.parse_args()
    corpus = Corpus()
    shared = shared_templates(corpus)
    for line in shared:
        print(f"shares a template with the training text: {line}", file=sys.stderr)
    engine = Engine(arguments.model)

    def ask(system: str, user: str, tools: tuple[str, ...]) -> str:
        return engine.answer(system, [Message("user", user)], tools, arguments.temperature, 1.0)

    items = list(judge(corpus, ask))
    for kind, goal in GOALS.items():
        some = [item for item in items if item.kind == kind]
        good = sum(item.right for item in some)
        print(f"{kind}: {good} of {len(some)} right ({100 * good / len(some):.1f} %, goal {goal} %)")
    if arguments.wrong:
        for item in items:
            if not item.right:
                print(f"[{item.kind}] {item.persona} <- {item.asked}\n    {item.answer}")
    sys.stdout.flush()
    os._exit(bool(shared))  # the engine's threads do not end by themselves


if __name__ == "__main__":
    main()
