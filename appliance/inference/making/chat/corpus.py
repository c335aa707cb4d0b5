"""Conversations that the chat model learns from: our own text, mixed without end from a seed.

The files in `text/` hold what people say and what personas answer. `Corpus.conversation(rng)` draws one conversation of
a few turns: a persona, the tools that are offered, and turns on the appliance, small talk, things nobody can know, tool calls and
the user's own name. `render` writes it in the format of the chat template, with the spans that the model must learn to say.

Everything is a function of the seed: shard N of a training run is the same on every machine.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
TEXT = HERE / "text"

#: Control tokens, in the order of their ids. The chat template writes the same ones (`export.py`).
PAD, END, SYSTEM, TOOLS, USER, ASSISTANT, TOOL = SPECIAL = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|tools|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
)

TOOL_NAMES = (
    "current_time",
    "system_status",
    "tpu_temperature",
    "calculate",
    "set_timer",
    "search_documents",
    "remember",
    "switch_persona",
)

#: Tools whose arguments are copied from the request are the hardest to learn: they come more often.
TOOL_WEIGHTS = {"calculate": 2.0, "set_timer": 1.5, "search_documents": 1.5, "remember": 1.5}

#: How people begin and end: these occasions come more often than the others.
OPENINGS = (
    "greeting",
    "greeting",
    "greeting_morning",
    "greeting_evening",
    "how_are_you",
    "who_are_you",
    "can_you_help_me",
)
CLOSINGS = ("thanks", "goodbye", "good_night")

#: What a persona says it cannot do when the tool is not offered.
DEEDS = {
    "current_time": "read the clock",
    "system_status": "look at the state of the tower",
    "tpu_temperature": "read the temperatures",
    "calculate": "calculate",
    "set_timer": "set a timer",
    "search_documents": "look into your documents",
    "remember": "write things down",
    "switch_persona": "change places with another persona",
}

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


#: Words that have a capital, small -> as written.
_PROPER = {"i": "I", "i'm": "I'm"} | {word.lower(): word for word in (*WEEKDAYS, *MONTHS)}


@dataclass(frozen=True)
class Message:
    """One message of a conversation; `role` is a key of the chat template."""

    role: str
    content: str


@dataclass
class Conversation:
    """A system prompt, the tools offered (names, in order) and the messages."""

    system: str
    tools: tuple[str, ...]
    messages: list[Message] = field(default_factory=list)


def sections(path: Path) -> dict[str, list[str]]:
    """Reads a text file of `# name` sections with one item a line."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        if line.startswith("#"):
            current = found.setdefault(line[1:].strip(), [])
        elif current is None:
            raise ValueError(f"{path}:{number}: a line before the first '# section'")
        else:
            current.append(line)
    return found


def tool_call(name: str, arguments: dict[str, object]) -> str:
    """A call as the model writes it: one JSON object between two tags."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{body}</tool_call>"


class Corpus:
    """All the text, loaded once; `conversation` draws from it."""

    def __init__(self, text: Path = TEXT) -> None:
        self.facts = tomllib.loads((text / "facts.toml").read_text("utf-8"))["fact"]
        self.personas = tomllib.loads((text / "personas.toml").read_text("utf-8"))["persona"]
        self.voices = tomllib.loads((text / "voices.toml").read_text("utf-8"))
        decoration = tomllib.loads((text / "decoration.toml").read_text("utf-8"))
        self.before: list[str] = decoration["before"]
        self.after: list[str] = decoration["after"]
        self.filler: list[str] = decoration["filler"]
        self.slots: dict[str, list[str]] = decoration["slots"]
        self.alike = {word: group for group in decoration["alike"] for word in group}
        self._alike_pattern = re.compile(
            r"\b(" + "|".join(map(re.escape, sorted(self.alike, key=len, reverse=True))) + r")\b"
        )
        self.questions: dict[str, list[str]] = {}
        for path in sorted((text / "questions").glob("*.txt")):
            self.questions |= sections(path)
        missing = [fact["id"] for fact in self.facts if not self.questions.get(fact["id"])]
        if missing:
            raise ValueError(f"{text}/questions: no question for {', '.join(missing)}")
        self.unknown = sections(text / "unknown.txt")
        self.tools = sections(text / "tools.txt")
        self.queries = [line for lines in sections(text / "queries.txt").values() for line in lines]
        self.clauses = [line for lines in sections(text / "clauses.txt").values() for line in lines]
        self.names = (text / "names.txt").read_text("utf-8").split()
        self.smalltalk: dict[str, tuple[list[str], dict[str, list[str]]]] = {}
        for path in sorted((text / "smalltalk").glob("*.txt")):
            for intent, lines in sections(path).items():
                says: list[str] = []
                replies: dict[str, list[str]] = {}
                for line in lines:
                    who, _, words = line.partition(": ")
                    if who == "u":
                        says.append(words)
                    else:
                        replies.setdefault(who, []).append(words)
                lacking = [p["id"] for p in self.personas if not replies.get(p["id"])]
                if lacking or not says:
                    raise ValueError(f"{path}: # {intent}: nothing for {lacking or 'u'}")
                self.smalltalk[intent] = (says, replies)
        # Words to be copied come from everything that is said here: one that is never copied is hardly ever copied rightly.
        answers = [line for _, by in self.smalltalk.values() for lines in by.values() for line in lines]
        told = [line for fact in self.facts for line in (*fact["say"], fact["more"])]
        everything = " ".join((*self.templates(), *self.queries, *self.clauses, *answers, *told))
        self._words = sorted(set(re.findall(r"\b[a-z]{3,}\b", everything.lower())))

    # --- the user's side ------------------------------------------------------------------------------------

    def templates(self) -> list[str]:
        """Every template of a user's message, slots unfilled: what held-out text must not share."""
        found = [line for lines in self.questions.values() for line in lines]
        found += [line for lines in self.unknown.values() for line in lines]
        found += [line for lines in self.tools.values() for line in lines]
        found += [line for says, _ in self.smalltalk.values() for line in says]
        return found

    def _fill(self, rng: random.Random, line: str) -> str:
        for slot, words in self.slots.items():
            while "{" + slot + "}" in line:
                line = line.replace("{" + slot + "}", rng.choice(words), 1)
        return line

    def _decorate(self, rng: random.Random, line: str, *, keep: str = "", bare: bool = False) -> str:
        """Puts politeness, capitals, punctuation and slips around a line; `keep` stays as it is, `bare` adds no words."""
        if rng.random() < 0.2:
            line = self._alike_pattern.sub(
                lambda m: rng.choice(self.alike[m[1]]) if rng.random() < 0.5 else m[0], line
            )
        if not keep and rng.random() < (0.05 if bare else 0.12):
            line = self._slip(rng, line)
        name = rng.choice(self.personas)["name"]
        roll = rng.random() if not bare else 1.0
        if roll < 0.14:
            line = rng.choice(self.before).replace("{name}", name) + line
        elif roll < 0.2 and not keep:
            line = line + rng.choice(self.after).replace("{name}", name)
        style = rng.random()
        if style < 0.72:
            line = line[:1].upper() + line[1:]
            line = re.sub(r"\bi\b", "I", line)
        if style < 0.5:
            line = re.sub(
                r"\b(tpus?|api|usb|cpu|ssh|tls|https?|p2p|ai|wifi)\b",
                lambda m: {"tpus": "TPUs", "wifi": "WiFi"}.get(m[0], m[0].upper()),
                line,
            )
            line = re.sub(
                r"\b(google|coral-reef|coral|finn|marina|pike|pearl|ray)\b",
                lambda m: m[0].title() if m[0] != "coral-reef" else "Coral-Reef",
                line,
            )
        elif style > 0.985 and not keep:
            line = line.upper()
        end = rng.random()
        return line + ("?" if end < 0.5 else "." if end < 0.65 else "!" if end < 0.69 else "")

    def _slip(self, rng: random.Random, line: str) -> str:
        """Drops, doubles, swaps or inserts: the model must not hang on one word or letter."""
        words = line.split(" ")
        for _ in range(1 + (len(words) > 6)):
            at = rng.randrange(len(words))
            what = rng.random()
            word = words[at]
            if what < 0.35 and len(words) > 3:
                del words[at]
            elif what < 0.6:
                words.insert(at, rng.choice(self.filler))
            elif len(word) > 3:
                i = rng.randrange(len(word) - 1)
                words[at] = rng.choice(
                    (
                        word[:i] + word[i + 1] + word[i] + word[i + 2 :],
                        word[:i] + word[i + 1 :],
                        word[:i] + word[i] + word[i:],
                    )
                )
        return " ".join(words)

    # --- the turns --------------------------------------------------------------------------------------------

    def _voice(self, rng: random.Random, persona: str, core: str) -> str:
        voice = self.voices[persona]
        opener: str = rng.choice(voice["openers"]) if rng.random() < 0.5 else ""
        closer: str = rng.choice(voice["closers"]) if rng.random() < 0.4 else ""
        return opener + core + closer

    def fact_turn(self, rng: random.Random, persona: str) -> list[Message]:
        fact = rng.choice(self.facts)
        question = self._decorate(rng, self._fill(rng, rng.choice(self.questions[fact["id"]])))
        turn = [
            Message("user", question),
            Message("assistant", self._voice(rng, persona, rng.choice(fact["say"]))),
        ]
        if rng.random() < 0.1:
            more = rng.choice(
                (
                    "tell me more",
                    "go on",
                    "and",
                    "what else",
                    "anything else about that",
                    "more please",
                    "can you say more",
                    "interesting, go on",
                    "is there more to it",
                    "more about this",
                    "say a bit more",
                    "explain further",
                    "i want to know more about that",
                    "why",
                    "oh, and then",
                )
            )
            turn += [
                Message("user", self._decorate(rng, more)),
                Message("assistant", fact["more"]),
            ]
        return turn

    def unknown_turn(self, rng: random.Random, persona: str) -> list[Message]:
        line = rng.choice(self.unknown[rng.choice(list(self.unknown))])
        return [
            Message("user", self._decorate(rng, self._fill(rng, line))),
            Message("assistant", rng.choice(self.voices[persona]["declines"])),
        ]

    def smalltalk_turn(
        self, rng: random.Random, persona: str, among: tuple[str, ...] | None = None
    ) -> list[Message]:
        """Small talk on any occasion, or on one of those `among`."""
        says, replies = self.smalltalk[rng.choice(among or tuple(self.smalltalk))]
        return [
            Message("user", self._decorate(rng, rng.choice(says), bare=True)),
            Message("assistant", rng.choice(replies[persona])),
        ]

    def name_turns(self, rng: random.Random) -> tuple[list[Message], list[Message]]:
        """The user gives a name, and asks for it later: two pieces with other turns between."""
        name = rng.choice(self.names) if rng.random() < 0.6 else self._invented(rng).title()
        tells = rng.choice(
            (
                "my name is {}",
                "i am {}",
                "call me {}",
                "i'm {}",
                "hi, i am {}",
                "you can call me {}",
                "people call me {}",
                "this is {} speaking",
                "hello, my name's {}",
                "{} here",
                "{} is my name",
                "the name is {}",
            )
        ).format(name)
        replies = ("Nice to meet you, {}.", "Hello, {}.", "Welcome, {}.", "{}, a good name. Hello!")
        asks = (
            "what is my name",
            "do you remember my name",
            "who am i",
            "what am i called",
            "do you still know my name",
            "tell me my name",
            "how did i say i am called",
            "say my name",
            "did you catch my name",
            "which name did i give you",
        )
        return (
            [
                Message("user", self._decorate(rng, tells, keep=name)),
                Message("assistant", rng.choice(replies).format(name)),
            ],
            [
                Message("user", self._decorate(rng, rng.choice(asks))),
                Message(
                    "assistant",
                    rng.choice(("Your name is {}.", "You are {}.", "You told me: {}.")).format(name),
                ),
            ],
        )

    def nameless_turn(self, rng: random.Random) -> list[Message]:
        _, ask = self.name_turns(rng)
        return [
            ask[0],
            Message("assistant", "I do not know: you have not told me your name yet."),
        ]

    def _invented(self, rng: random.Random) -> str:
        """A word that stands in no dictionary, so that copying is learnt and not recalled."""
        syllables = rng.randint(2, 3)
        return "".join(
            rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "l", "s"))
            for _ in range(syllables)
        )

    def _span(self, rng: random.Random, lines: list[str]) -> str:
        """A phrase to copy: one of ours, one with words exchanged, or one with an invented word."""
        phrase = rng.choice(lines)
        words = phrase.split()
        for _ in range(rng.choice((0, 1, 1, 2))):
            at = rng.randrange(len(words))
            if rng.random() < 0.75:
                words[at] = rng.choice(self._words)
            else:
                words[at] = self._invented(rng)
        if rng.random() < 0.25:
            words[rng.randrange(len(words))] = rng.choice(self.names)
        if rng.random() < 0.1:
            words.append(str(rng.randint(1, 2030)))
        if rng.random() < 0.6:  # as careful people write; the others leave everything small
            words = [_PROPER.get(word, word) for word in words]
        return " ".join(words)

    def tool_request(self, rng: random.Random, name: str) -> tuple[str, dict[str, object]]:
        """A user's request for the tool `name`, and the arguments of the right call."""
        arguments: dict[str, object] = {}
        keep = ""
        if name == "calculate":
            kind = rng.choice("+-*/")
            a = str(rng.randint(0, 10 ** rng.randint(1, 4)))
            b = str(rng.randint(0, 10 ** rng.randint(1, 4)))
            expression = a + kind + b
            roll = rng.random()
            if roll < 0.12:
                section, form = rng.choice(
                    (("calculate three+", "{}+{}+{}"), ("calculate mixed", "{}*{}-{}"))
                )
                c = str(rng.randint(0, 10 ** rng.randint(1, 3)))
                expression = form.format(a, b, c)
                line = rng.choice(self.tools[section])
                line = line.replace("{a}", a).replace("{b}", b).replace("{c}", c)
            elif roll < 0.34:
                shown = expression
                if rng.random() < 0.3:
                    extra = rng.choice("+-*/")
                    c = str(rng.randint(0, 10 ** rng.randint(1, 3)))
                    expression += extra + c
                    shown = expression
                    if rng.random() < 0.5:
                        for sign, word in (
                            ("+", "plus"),
                            ("-", "minus"),
                            ("*", "times"),
                            ("/", "divided by"),
                        ):
                            shown = shown.replace(sign, f" {word} ")
                elif rng.random() < 0.5:
                    shown = f"{a} {kind} {b}"
                if rng.random() < 0.3:
                    shown = shown.replace("*", rng.choice(("x", "×")))
                line = rng.choice(self.tools["calculate raw"]).replace("{expr}", shown)
            else:
                line = rng.choice(self.tools[f"calculate {kind}"])
                line = line.replace("{a}", a).replace("{b}", b)
            arguments["expression"] = expression
            keep = expression
        elif name == "tpu_temperature" and rng.random() < 0.5:
            tray = rng.randint(1, 8)
            line = rng.choice(self.tools["tpu_temperature_tray"]).replace("{tray}", str(tray))
            arguments["tray"] = tray
        elif name == "set_timer":
            minutes, words = self._duration(rng)
            line = rng.choice(self.tools["set_timer"]).replace("{duration}", words)
            arguments["minutes"] = minutes
            keep = words
        elif name == "search_documents":
            query = self._span(rng, self.queries)
            line = rng.choice(self.tools["search_documents"]).replace("{query}", query)
            arguments["query"] = keep = query
        elif name == "remember":
            text = self._span(rng, self.clauses)
            line = rng.choice(self.tools["remember"]).replace("{text}", text)
            arguments["text"] = keep = text
        elif name == "switch_persona":
            persona = rng.choice(self.personas)
            line = rng.choice(self.tools["switch_persona"]).replace("{persona}", persona["id"])
            arguments["persona_id"] = persona["id"]
        else:
            line = rng.choice(self.tools[name])
        if keep and name in ("search_documents", "remember"):
            # Only what stands around the span is decorated: a slip inside would make the call wrong.
            mark = "\x00"
            line = self._decorate(rng, line.replace(keep, mark, 1), keep=mark)
            if line.startswith(mark) and rng.random() < 0.5:
                shown = keep[:1].upper() + keep[1:]
                field_name = "query" if name == "search_documents" else "text"
                arguments[field_name] = shown
                keep = shown
            return line.replace(mark, keep), arguments
        return self._decorate(rng, self._fill(rng, line), keep=keep), arguments

    def _duration(self, rng: random.Random) -> tuple[int, str]:
        roll = rng.random()
        if roll < 0.6:
            n = rng.choice((rng.randint(1, 60), rng.randint(1, 20), rng.randint(1, 180)))
            return n, f"{n} " + ("minute" if n == 1 else rng.choice(("minutes", "minutes", "mins", "min")))
        if roll < 0.7:
            words = [
                "one",
                "two",
                "three",
                "four",
                "five",
                "six",
                "seven",
                "eight",
                "nine",
                "ten",
                "fifteen",
                "twenty",
                "thirty",
                "forty",
                "fifty",
            ]
            values = [*range(1, 11), 15, 20, 30, 40, 50]
            at = rng.randrange(len(words))
            return values[at], words[at] + (" minute" if at == 0 else " minutes")
        return rng.choice(
            (
                (60, "an hour"),
                (60, "one hour"),
                (60, "1 hour"),
                (30, "half an hour"),
                (15, "a quarter of an hour"),
                (15, "quarter of an hour"),
                (90, "an hour and a half"),
                (90, "one and a half hours"),
                (120, "two hours"),
                (120, "2 hours"),
                (180, "three hours"),
                (180, "3 hours"),
                (240, "4 hours"),
                (45, "three quarters of an hour"),
            )
        )

    def _result(
        self, rng: random.Random, name: str, arguments: dict[str, object]
    ) -> tuple[dict[str, object], tuple[str, ...]]:
        """What the tool answers, and ways to say it."""
        if name == "current_time":
            time = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
            day, month = rng.randint(1, 28), rng.choice(MONTHS)
            weekday = rng.choice(WEEKDAYS)
            return (
                {"time": time, "weekday": weekday, "date": f"{day} {month}"},
                (f"It is {time} on {weekday}, {day} {month}.", f"It is {weekday}, {day} {month}, {time}."),
            )
        if name == "system_status":
            tpus, workers, repairs = (
                rng.randint(0, 96),
                rng.randint(1, 9),
                rng.choice((0, 0, rng.randint(1, 5))),
            )
            state = "degraded" if repairs else "ok"
            result = {"state": state, "tpus": tpus, "workers": workers, "repairs": repairs}
            if repairs:
                return result, (f"The tower runs, but repairs are waiting: {repairs}.",)
            return result, (
                f"All is well: TPUs {tpus}, workers {workers}.",
                "All is well, nothing to repair.",
            )
        if name == "tpu_temperature":
            warm = rng.randint(25, 80)
            hottest = warm + rng.randint(0, 15)
            return (
                {"celsius": warm, "hottest": hottest},
                (f"The TPUs are at {warm} degrees, the hottest at {hottest}.",),
            )
        if name == "calculate":
            value = str(rng.randint(0, 10 ** rng.randint(1, 6)))
            if rng.random() < 0.3:
                value += "." + str(rng.randint(1, 99))
            return {"result": value}, (f"That is {value}.", f"The result is {value}.")
        if name == "set_timer":
            n = arguments["minutes"]
            return {"minutes": n}, (f"The timer runs: {n} minutes.", f"Done, {n} minutes from now.")
        if name == "search_documents":
            if rng.random() < 0.35:
                return {"found": 0}, (
                    "I found nothing about that in your documents.",
                    "There is nothing about that in your documents.",
                )
            title = self._span(rng, self.queries)
            text = self._span(rng, self.clauses)
            return {"title": title, "text": text}, (f"I found it in {title}: {text}.",)
        if name == "remember":
            return {"saved": True}, ("I will remember that.", "Noted, I will keep it in mind.")
        persona_id = str(arguments["persona_id"])
        return {"persona_id": persona_id}, (
            f"{persona_id.title()} will talk to you now.",
            f"Here comes {persona_id.title()}.",
        )

    def tool_turn(self, rng: random.Random, persona: str, offered: tuple[str, ...]) -> list[Message]:
        known = offered if offered and rng.random() < 0.88 else TOOL_NAMES
        (name,) = rng.choices(known, [TOOL_WEIGHTS.get(each, 1.0) for each in known])
        request, arguments = self.tool_request(rng, name)
        if name not in offered:
            unable: str = self.voices[persona]["unable"]
            return [
                Message("user", request),
                Message("assistant", unable.format(deed=DEEDS[name])),
            ]
        turn = [Message("user", request), Message("assistant", tool_call(name, arguments))]
        if rng.random() < 0.6:
            if rng.random() < 0.06:
                reason = rng.choice(("timeout", "not available", "permission denied", "busy"))
                turn += [
                    Message("tool", json.dumps({"error": reason})),
                    Message("assistant", f"That did not work: {reason}."),
                ]
            else:
                result, ways = self._result(rng, name, arguments)
                turn += [
                    Message("tool", json.dumps(result, ensure_ascii=False)),
                    Message("assistant", rng.choice(ways)),
                ]
        return turn

    def echo_turn(self, rng: random.Random) -> list[Message]:
        """The user wants words said again: pure copying, of words that nobody could guess."""
        parts = []
        for _ in range(rng.randint(1, 4)):
            kind = rng.random()
            if kind < 0.35:
                parts.append(self._span(rng, self.queries if rng.random() < 0.5 else self.clauses))
            elif kind < 0.65:
                parts.append(" ".join(rng.choice(self._words) for _ in range(rng.randint(1, 4))))
            elif kind < 0.8:
                word = self._invented(rng)
                parts.append(word.title() if rng.random() < 0.4 else word)
            elif kind < 0.88:
                parts.append(rng.choice(self.names))
            else:
                parts.append(str(rng.randint(0, 10 ** rng.randint(1, 5))))
        words = " ".join(parts)
        ask = rng.choice(
            (
                "repeat after me: {}",
                "say {}",
                "please say: {}",
                "write {}",
                "repeat: {}",
                "say the words {}",
                "copy this: {}",
                "say after me {}",
                "can you repeat this, {}",
                "just write {}",
            )
        )
        ask = ask[:1].upper() + ask[1:] if rng.random() < 0.6 else ask
        return [Message("user", ask.format(words)), Message("assistant", words)]

    # --- a conversation --------------------------------------------------------------------------------------

    def conversation(self, rng: random.Random, *, echo: float = 0.0) -> Conversation:
        """One conversation; `echo` is the share of turns that only ask to repeat words."""
        persona = rng.choice(self.personas)
        system = persona["system"]
        if rng.random() < 0.04:
            system = system.split(". ")[0] + "."
        offered: tuple[str, ...] = ()
        if rng.random() < 0.6:
            count = len(TOOL_NAMES) if rng.random() < 0.6 else rng.randint(1, len(TOOL_NAMES) - 1)
            offered = tuple(rng.sample(TOOL_NAMES, count))
            if count == len(TOOL_NAMES) and rng.random() < 0.7:
                offered = TOOL_NAMES
        result = Conversation(system, offered)
        turns = rng.randint(10, 22) if rng.random() < 0.04 else rng.choice((1, 2, 3, 3, 4, 5, 6))
        if rng.random() < 0.15:
            result.messages += self.smalltalk_turn(rng, persona["id"], OPENINGS)
        ask_name: list[Message] | None = None
        named = False
        for _ in range(turns):
            if ask_name is not None and rng.random() < 0.4:
                result.messages += ask_name
                ask_name = None
                continue
            (kind,) = rng.choices(
                ("echo", "fact", "unknown", "smalltalk", "tool", "name", "nameless"),
                (echo, 0.29, 0.13, 0.25, 0.26 if offered else 0.03, 0.035, 0.01),
            )
            if kind == "echo":
                result.messages += self.echo_turn(rng)
            elif kind == "fact":
                result.messages += self.fact_turn(rng, persona["id"])
            elif kind == "unknown":
                result.messages += self.unknown_turn(rng, persona["id"])
            elif kind == "smalltalk":
                result.messages += self.smalltalk_turn(rng, persona["id"])
            elif kind == "tool":
                result.messages += self.tool_turn(rng, persona["id"], offered)
            elif kind == "name" and not named:
                told, ask_name = self.name_turns(rng)
                result.messages += told
                named = True
            elif kind == "nameless" and not named:
                result.messages += self.nameless_turn(rng)
        if rng.random() < 0.06:
            result.messages += self.smalltalk_turn(rng, persona["id"], CLOSINGS)
        if not result.messages:
            result.messages += self.smalltalk_turn(rng, persona["id"])
        return result


def render(conversation: Conversation) -> list[tuple[str, bool]]:
    """The conversation as pieces of text and whether the model learns to say them.

    The concatenation is what the chat template writes (`export.CHAT_TEMPLATE`), with the closing token of
    each assistant message among what is learnt.
    """
    head = SYSTEM + conversation.system
    if conversation.tools:
        head += TOOLS + " ".join(conversation.tools)
    pieces = [(head + END, False)]
    marks = {"user": USER, "assistant": ASSISTANT, "tool": TOOL}
    for message in conversation.messages:
        mark = marks[message.role]
        if message.role == "assistant":
            pieces += [(mark, False), (message.content + END, True)]
        else:
            pieces.append((mark + message.content + END, False))
    return pieces
