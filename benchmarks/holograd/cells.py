"""Experiments in small pieces: each cell's result is written at once, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Cell = dict[str, Any]
Row = dict[str, Any]
# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval over `count` values."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(values: Iterable[float]) -> Interval:
    """Student's interval; without one where there is a single value."""
    array = np.asarray(list(values), dtype=np.float64)
    if len(array) < 2:
        return Interval(float(array.mean()), 0.0, len(array))
    quantile = STUDENT[len(array) - 2] if len(array) - 2 < len(STUDENT) else 1.96
    return Interval(float(array.mean()), quantile * float(array.std(ddof=1)) / math.sqrt(len(array)), len(array))


def where(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows whose fields have these values; a function as value is a condition."""
    return [row for row in rows if all(v(row.get(k)) if callable(v) else row.get(k) == v for k, v in wanted.items())]


def column(rows: Sequence[Row], field: str, **wanted: Any) -> list[float]:
    """One field of those rows."""
    return [row[field] for row in where(rows, **wanted)]


def measure_all(
    path: Path, cells: Sequence[Cell], measure: Callable[[Cell], Row], settings: dict[str, Any]
) -> list[Row]:
    """Measure the cells that `path` does not hold yet, write after each, and return all rows in the cells' order."""
    known = _known(path, settings)
    for number, cell in enumerate(cells, 1):
        if _key(cell) in known:
            continue
        begun = time.perf_counter()
        known[_key(cell)] = measure(cell)
        _write(path, settings, [(c, known[_key(c)]) for c in cells if _key(c) in known])
        print(f"{path.stem} {number}/{len(cells)}  {_label(cell)}  {time.perf_counter() - begun:.1f} s", flush=True)
    return [{**cell, **known[_key(cell)]} for cell in cells]


def read_rows(path: Path, cells: Sequence[Cell], settings: dict[str, Any]) -> list[Row] | None:
    """All rows in the cells' order, or None while one is missing."""
    known = _known(path, settings)
    complete = all(_key(cell) in known for cell in cells)
    return [{**cell, **known[_key(cell)]} for cell in cells] if complete else None


def _known(path: Path, settings: dict[str, Any]) -> dict[str, Row]:
    """Results on file that were measured under these settings."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {_key(row["cell"]): row["found"] for row in content["rows"]} if content.get("settings") == settings else {}


def _key(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)


def _label(cell: Cell) -> str:
    return " ".join(f"{key}={value}" for key, value in cell.items())


def _write(path: Path, settings: dict[str, Any], rows: Sequence[tuple[Cell, Row]]) -> None:
    """Beside the target first, so that a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps({"cell": cell, "found": found}) for cell, found in rows)
    text = f'{{"settings": {json.dumps(settings)},\n "rows": [\n{lines}\n ]}}\n'
    fresh = path.with_suffix(".part")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
