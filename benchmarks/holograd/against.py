"""Two folders of results side by side: whether the verdicts are the same, and how many measured cells are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def compared(here: Path, there: Path) -> tuple[list[str], bool]:
    """What to say of each claim and of each data file that both folders have; whether all verdicts agree."""
    verdicts = [json.loads((folder / "data" / "verdicts.json").read_text(encoding="utf-8")) for folder in (here, there)]
    lines, agree = [], True
    for claim in sorted({*verdicts[0], *verdicts[1]}):
        own, other = (each.get(claim, "not decided") for each in verdicts)
        agree &= own == other
        lines.append(f"{claim}: {own}, as there" if own == other else f"{claim}: {own}; there {other}")
    names = sorted(path.name for path in (here / "data").glob("e*.json") if (there / "data" / path.name).exists())
    return lines + [_cells(name, here, there) for name in names], agree


def _cells(name: str, here: Path, there: Path) -> str:
    """How many cells have the same values, and how far apart the others are."""
    own, other = (_rows(folder / "data" / name) for folder in (here, there))
    both = own.keys() & other.keys()
    same = sum(own[key] == other[key] for key in both)
    far = max((gap for key in both for gap in _gaps(own[key], other[key])), default=0.0)
    alone = len(own.keys() ^ other.keys())
    rest = f", {alone} in one folder only" if alone else ""
    return f"{name}: {same} of {len(both)} cells equal, the largest relative difference is {far:.2g}{rest}"


def _rows(path: Path) -> dict[str, Any]:
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {json.dumps(row["cell"], sort_keys=True): row["found"] for row in rows}


def _gaps(one: Any, other: Any) -> Iterator[float]:
    """Relative differences of all numbers; infinite where the form differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _gaps(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for pair in zip(one, other, strict=True):
            yield from _gaps(*pair)
    elif isinstance(one, int | float) and isinstance(other, int | float):
        yield abs(one - other) / max(abs(one), abs(other)) if one != other else 0.0
    else:
        yield 0.0 if one == other else float("inf")
