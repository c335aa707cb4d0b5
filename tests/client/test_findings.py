"""What the doctor says, as lines."""

from __future__ import annotations

import io

from rich.console import Console

from appliance.client import screen
from appliance.client.findings import LOOKS, finding_lines, summary_line
from appliance.wire.messages import Check, Finding, Outcome

BAD = Finding(
    check=Check.LINK,
    subject="eth0",
    outcome=Outcome.FAILED,
    symptom="no signal",
    cause="the cable \x1b[2J",
    remedy="look at it",
)
FINE = Finding(check=Check.CLIENTS, subject="", outcome=Outcome.OK, symptom="nobody is connected")


def test_a_finding() -> None:
    page = io.StringIO()
    screen.show([*finding_lines(BAD), *finding_lines(FINE)], Console(file=page, width=100, color_system=None))
    assert page.getvalue().splitlines() == [
        "✗ link        eth0: no signal",
        "              likely: the cable [2J",
        "              remedy: look at it",
        "✓ clients     nobody is connected",
    ]


def test_every_outcome_has_a_sign_of_its_own() -> None:
    assert len({sign for sign, _ in LOOKS.values()}) == len(LOOKS) == len(Outcome)


def test_the_summary() -> None:
    assert summary_line([BAD, FINE, FINE]) == "2 well, 1 failed"
    assert summary_line([]) == ""
