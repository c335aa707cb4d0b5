"""What the doctor of the network finds, as lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.text import Text

from appliance.wire.messages import Finding, Outcome

from .screen import Part, printable

#: A sign that tells the outcome without colours, and its style.
LOOKS: dict[Outcome, tuple[str, str]] = {
    Outcome.OK: ("✓", "green"),
    Outcome.WARNING: ("!", "bold yellow"),
    Outcome.FAILED: ("✗", "bold red"),
    Outcome.SKIPPED: ("-", "dim"),
}

_WORDS = {
    Outcome.OK: "well",
    Outcome.WARNING: "to look at",
    Outcome.FAILED: "failed",
    Outcome.SKIPPED: "skipped",
}


def finding_lines(finding: Finding) -> Iterator[Part]:
    """One finding: what was seen; and when it is not well, why probably and what to do."""
    sign, style = LOOKS[finding.outcome]
    subject = f"{finding.subject}: " if finding.subject else ""
    yield Text.assemble(
        (f"{sign} ", style),
        (f"{finding.check:<12}", "bold"),
        printable(f"{subject}{finding.symptom}"),
    )
    for name, text in (("likely", finding.cause), ("remedy", finding.remedy)):
        if text:
            yield Text.assemble(" " * 14, (f"{name}: ", "dim"), printable(text))


def summary_line(findings: Sequence[Finding]) -> str:
    """How many of each."""
    counts = Counter(each.outcome for each in findings)
    return ", ".join(f"{counts[outcome]} {_WORDS[outcome]}" for outcome in Outcome if counts[outcome])
