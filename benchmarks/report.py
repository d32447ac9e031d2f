"""The table, and the facts about machine and versions that a figure means nothing without."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning
import torch

import lightning_sfl
from benchmarks.lanes import Ratio


@dataclass(frozen=True)
class Row:
    """One figure: `found` over its pairs, what we aim at, and what else was seen."""

    figure: str
    found: Ratio
    unit: str
    aim: str
    details: dict[str, Any] = field(default_factory=dict)


def table(rows: Sequence[Row]) -> str:
    """Median, extremes, the median of the processor-time ratios, pairs, aim."""
    lines = [f"{'figure':<58} {'median':>8} {'min':>7} {'max':>7} {'cpu':>7} {'pairs':>6}  aim"]
    for row in rows:
        found = row.found
        values = (
            f"{found.median:>7.3f}{row.unit:1} {found.low:>7.3f} {found.high:>7.3f} {found.cpu:>7.3f} {found.pairs:>6}"
        )
        lines.append(f"{row.figure:<58} {values}  {row.aim}")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Versions, threads, processor and how busy it is."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "lightning_sfl": lightning_sfl.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()),
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(folder: Path, rows: Sequence[Row], facts: dict[str, Any]) -> Path:
    """Everything as JSON in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "latest.json"
    content = {"machine": facts, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
