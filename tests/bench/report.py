"""How figures are shown: ours, the limit's or the peer's, and the ratio."""

from __future__ import annotations


def head(rounds: int, cores: int) -> None:
    """The first lines."""
    print(f"{cores} cores; medians of {rounds} rounds, the sides in turn\n")
    print(f"{'figure':<60} {'ours':>12} {'limit, peer':>12} {'ratio':>7}", flush=True)


def row(name: str, ours: str, limit: str = "", ratio: float | None = None) -> None:
    """One figure."""
    print(f"{name:<60} {ours:>12} {limit:>12} {'' if ratio is None else f'{ratio:.2f}':>7}", flush=True)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"
