"""Numbers, facts and lists as sentences and tables write them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any


def plain(value: Any) -> str:
    """A fact in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {found}" for name, found in value.items())
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def number(value: float | None) -> str:
    """Three significant digits."""
    return "not measured" if value is None else f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`; of more than eight the first six and how many more."""
    known = list(words)
    *first, last = known if len(known) <= 8 else [*known[:6], f"{len(known) - 6} more"]
    return f"{', '.join(first)} and {last}" if first else last


def wrapped(label: str, width: int, lines: int = 3) -> str:
    """A label over a few lines of this width; what does not fit ends in dots."""
    return "\n".join(textwrap.wrap(label, width, max_lines=lines, placeholder=" ..."))
