"""RESULTS_SUMMARY.md: every claim with its verdict and the figures behind it, out of the data files alone."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.holograd.cells import read_rows
from benchmarks.holograd.claims import Claim
from benchmarks.holograd.setting import Setting


def write_summary(experiments: Sequence[Any], setting: Setting, out: Path) -> Path:
    """The summary of those experiments whose data are complete under this setting."""
    found, missing = [], []
    for experiment in experiments:
        rows = read_rows(out / "data" / f"{experiment.FILE}.json", experiment.cells(setting), setting.recorded())
        if rows is None:
            missing.append(experiment.FILE)
        else:
            found += experiment.claims(rows, setting)
    path = out / "RESULTS_SUMMARY.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(sorted(found, key=lambda claim: claim.number), missing, setting), encoding="utf-8")
    verdicts = {f"C{claim.number}": claim.verdict for claim in found}
    (out / "data" / "verdicts.json").write_text(
        json.dumps(dict(sorted(verdicts.items())), indent=1) + "\n", encoding="utf-8"
    )
    return path


def text_of(claims: Sequence[Claim], missing: Sequence[str], setting: Setting) -> str:
    """Markdown."""
    lines = ["# HoloGrad: what became of its eight claims", "", *_header(setting), ""]
    lines += [table_of(claims)]
    if missing:
        lines += ["", f"Not measured yet under these settings: {', '.join(missing)}."]
    for claim in claims:
        lines += ["", f"## C{claim.number}: {claim.text}", "", f"**{claim.verdict}**: {claim.condition}.", ""]
        lines += ["| figure | value [95 % interval] |", "|---|---|"]
        lines += [f"| {_safe(name)} | {_safe(value)} |" for name, value in claim.figures.items()]
    return "\n".join(lines) + "\n"


def table_of(claims: Sequence[Claim]) -> str:
    """One row a claim."""
    rows = [f"| C{c.number}: {c.text} | **{c.verdict}** | {c.condition} |" for c in claims]
    return "\n".join(["| claim | verdict | |", "|---|---|---|", *rows])


def _safe(text: str) -> str:
    return text.replace("|", "\\|")


def _header(setting: Setting) -> list[str]:
    size = "" if setting.size == "tiny" else f" --size {setting.size}"
    data = "" if setting.data is None else " --data DATA"
    command = (
        f"python benchmarks/holograd/run.py{size} --seeds {len(setting.seeds)} --tasks {','.join(setting.tasks)}{data}"
    )
    place = f"on {os.cpu_count()} cores of {platform.machine()} ({platform.system()}), one thread, no accelerator"
    if torch.cuda.is_available():
        place += f" but for {torch.cuda.get_device_name()} in E6"
    versions = f"torch {torch.__version__}, numpy {np.__version__}, python {platform.python_version()}"
    return [
        f"`{command}`",
        "",
        f"{place}; {versions}. Intervals are Student's, over the {len(setting.seeds)} seeds where nothing",
        "else is said. Verdicts are computed from `data/*.json` by the files `e1_...` to `e7_...` beside this folder,",
        "which say what is measured and what would refute a claim.",
    ]
