"""What the tests of the virtual machine measured: printed at the end, and written to a file for the long run."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

#: Where `make test-long` writes it.
LONG_REPORT = Path(__file__).with_name("LONG.md")


@dataclass
class Figures:
    """Names and values in the order in which they came."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, value: float | str, unit: str = "") -> None:
        """One line of the report. A unit stands after its value."""
        shown = (
            value if isinstance(value, str) else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
        )
        self.rows.append((name, f"{shown} {unit}".strip()))

    def lines(self) -> list[str]:
        width = max((len(name) for name, _ in self.rows), default=0)
        return [f"{name:<{width}}  {value}" for name, value in self.rows]

    def markdown(self, outcome: str, took_s: float) -> str:
        """The whole report of a long run."""
        today = datetime.datetime.now(datetime.UTC).date()
        machine = f"{os.cpu_count()} processors, Linux {platform.release().partition('-')[0]}"
        rows = "".join(f"| {name} | {value} |\n" for name, value in self.rows)
        return (
            "# The long tests\n\nWritten by `make test-long`.\n\n"
            f"{today}, {machine}: {outcome}, in {took_s / 60:.0f} minutes. The virtual machine is emulated where there is no "
            "KVM: Python runs some eight times slower in it.\n\n"
            f"| | |\n|---|---|\n{rows}"
        )
