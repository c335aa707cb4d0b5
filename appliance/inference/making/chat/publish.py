"""Enters a chat model into the manifest and writes its card: `python -m appliance.inference.making.chat.publish FILE.gguf`.

The card's figures and transcripts are made here, from the file as it ships and with the settings that ship; nothing is edited.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from pathlib import Path

from appliance.config.appliance import Chat
from appliance.files import write_atomically
from appliance.inference.making.export import enter

from .corpus import HERE, TOOL_NAMES, Corpus, Message
from .evaluate import GOALS, Engine, Item, judge, shared_templates
from .plan import Plan, Shape

NAME = "coral-reef-chat"
CONTEXT_TOKENS = Shape().context
DESCRIPTION = (
    "Small talk and facts about the tower in six voices: five million parameters, made by this project"
)


def figures(items: list[Item]) -> dict[str, tuple[int, int]]:
    """Right and all, by kind."""
    found = {}
    for kind in GOALS:
        some = [item for item in items if item.kind == kind]
        found[kind] = (sum(item.right for item in some), len(some))
    return found


def transcripts(engine: Engine, corpus: Corpus, settings: Chat) -> str:
    """The ten conversations, as Markdown."""
    personas = {persona["id"]: persona for persona in corpus.personas}
    parts = []
    plan = tomllib.loads((HERE / "transcripts.toml").read_text("utf-8"))["conversation"]
    for number, conversation in enumerate(plan, 1):
        persona = personas[conversation["persona"]]
        tools = TOOL_NAMES if conversation.get("tools") else ()
        said: list[Message] = []
        lines = []
        for message in conversation["says"]:
            said.append(Message("user", message))
            reply = engine.answer(persona["system"], said, tools, settings.temperature, settings.top_p)
            said.append(Message("assistant", reply))
            lines += [f"> **You:** {message}  ", f"> **{persona['name']}:** {reply.strip() or '(nothing)'}  "]
        offered = " (tools offered)" if tools else ""
        parts.append(f"### {number}. {persona['name']}{offered}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def card(path: Path, corpus: Corpus, settings: Chat) -> str:
    """The model card."""
    engine = Engine(path)

    def run(temperature: float, top_p: float) -> dict[str, tuple[int, int]]:
        def ask(system: str, user: str, tools: tuple[str, ...]) -> str:
            return engine.answer(system, [Message("user", user)], tools, temperature, top_p)

        return figures(list(judge(corpus, ask)))

    shipped, greedy = run(settings.temperature, settings.top_p), run(0.0, 1.0)
    what = {
        "appliance": "questions on the appliance, answered with the fact",
        "unknowable": "questions nobody in the tower can know, declined",
        "tools": "requests for tools, the one right call and nothing else",
    }
    rows = []
    for kind, goal in GOALS.items():
        cells = [
            f"{good} of {count} ({100 * good / count:.1f} %)" for good, count in (shipped[kind], greedy[kind])
        ]
        rows.append(f"| {what[kind]} | {cells[0]} | {cells[1]} | {goal} % |")
    plan = Plan()
    questions = sum(len(lines) for lines in corpus.questions.values())
    smalltalk = sum(len(says) for says, _ in corpus.smalltalk.values())
    replies = sum(len(each) for _, by in corpus.smalltalk.values() for each in by.values())
    return f"""# {NAME}

{DESCRIPTION}. It is small enough to answer at once on one processor core, and it knows accordingly little.

## Figures

Measured on the file that ships, on text that shares no template with the training text and was written by somebody who had
not read it (`appliance/inference/making/chat/heldout/`). Each question is a conversation of its own; the personas take turns.

| | as shipped (temperature {settings.temperature}, top-p {settings.top_p}) | greedy | goal |
|---|---|---|---|
{chr(10).join(rows)}

A fact counts when all of its patterns are in the answer, a decline when the answer says that it does not know, a call when name and
arguments are right (free text: the words asked for, taken from the request).

## Data

All text is the project's own (`appliance/inference/making/chat/text/`): {len(corpus.facts)} facts with {questions:,} ways to ask for
them, {len(corpus.smalltalk)} occasions for small talk with {smalltalk:,} openings and {replies:,} replies in six voices,
{sum(map(len, corpus.unknown.values())):,} questions to decline and {sum(map(len, corpus.tools.values()))} ways to ask for one of
{len(TOOL_NAMES)} tools, mixed into conversations without end from a seed. The tokenizer (2,048 tokens, one a digit) was learnt from the
same text. No other data, model or teacher was used.

## Size

{path.stat().st_size / 1e6:.1f} MB of GGUF (Q8_0): 4,951,296 parameters, 6 blocks of width 256, 8 heads (4 of keys and values), a window of
{CONTEXT_TOKENS} tokens. Made by `make model`: {plan.steps:,} steps of {plan.step_tokens:,} tokens in less than 90 minutes on two cores
where nothing else runs.

## Limits

- It knows the appliance as the specification describes it, and everyday small talk. It declines nearly everything else, and is
  sometimes wrong about what it declines or answers; nothing that it says should be relied on without another source.
- English only. Unusual wordings, long messages and several questions in one are often misunderstood.
- It remembers a name within a conversation, hardly anything else that it is told.
- It calls only the {len(TOOL_NAMES)} tools that it was trained with ({", ".join(TOOL_NAMES)}), by name; it cannot learn others from a description.
- For more than this, load a larger GGUF model: any with a chat template of its own works.

## Ten conversations, unedited

With the settings that ship and seed 1.

{transcripts(engine, corpus, settings)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    path: Path = parser.parse_args().model
    corpus = Corpus()
    if shared := shared_templates(corpus):
        raise SystemExit(f"held-out text shares a template with the training text: {shared}")
    enter(path, NAME, "text", DESCRIPTION, CONTEXT_TOKENS)
    text = card(path, corpus, Chat())
    write_atomically(path.with_suffix(".md"), text.encode())
    print(text.partition("## Data")[0])
    os._exit(0)  # the engine's threads do not end by themselves


if __name__ == "__main__":
    main()
