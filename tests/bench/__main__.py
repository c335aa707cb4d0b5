"""`make bench`: prints our figure, the limit's or the peer's, and the ratio."""

from __future__ import annotations

import argparse
import os

from . import (
    cancel,
    devices,
    firewall,
    http_requests,
    network,
    placement,
    recovery,
    report,
    silence,
    start,
    throughput,
    tpu,
)

SECTIONS = {
    "placement": placement.measure,
    "throughput": throughput.measure,
    "requests": http_requests.measure,
    "silence": silence.measure,
    "cancel": cancel.measure,
    "recovery": recovery.measure,
    "start": start.measure,
    "devices": devices.measure,
    "tpu": tpu.measure,
    "firewall": firewall.measure,
    "network": network.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often each side runs (default: %(default)s)"
    )
    parser.add_argument(
        "sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all without", metavar="SECTION"
    )
    asked = parser.parse_args()
    if unknown := set(asked.sections) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    report.head(asked.rounds, os.cpu_count() or 1)
    for name, measure in SECTIONS.items():
        if not asked.sections or name in asked.sections:
            measure(asked.rounds)


if __name__ == "__main__":
    main()
