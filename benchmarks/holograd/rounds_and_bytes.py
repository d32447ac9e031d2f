"""Accuracy over rounds and over bytes, side by side: the figures in docs/holograd.md, from a finished sweep.

python train.py sweep --config configs/experiments/holograd_digits.yaml
python benchmarks/holograd/rounds_and_bytes.py runs/holograd_digits     # writes docs/holograd/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, this folder is no package yet

from benchmarks.holograd.pictures import axes, save
from lightning_sfl.records.compare import compare
from lightning_sfl.records.curves import mean_curve, points
from lightning_sfl.records.figures import Row
from lightning_sfl.records.tables import figures_csv

ROOT = Path(__file__).resolve().parents[2]
LAST, TARGET = 5, 0.8


def draw(rows: Sequence[Row], path: Path) -> None:
    """Mean over the seeds; bytes on a logarithmic axis, as the methods lie two orders of magnitude apart."""
    figure, panels = axes(2)
    for row in rows:
        for panel, axis in zip(panels, ("rounds", "MB moved"), strict=True):
            middle = mean_curve([points(run, run.accuracy_tag, axis) for run in row.group.runs])
            x, y = zip(*((x, spread.mean) for x, spread in middle), strict=True)
            panel.plot(x, y, label=row.label, linewidth=1)
    panels[0].set(xlabel="round", ylabel="accuracy")
    panels[1].set(xlabel="MB moved, both ways", xscale="log")
    for panel in panels:
        panel.axhline(TARGET, color="grey", linestyle=":")
        panel.set_ylim(0, 1.02)
    panels[0].legend(fontsize=6, loc="lower right")
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, write both files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("runs", type=Path, help="folder of the sweep's runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "holograd", help="where figures.csv and png go")
    given = parser.parse_args(arguments)
    if not given.runs.is_dir():
        parser.error(f"runs={given.runs} is not allowed: a folder of finished runs")
    found = compare([str(given.runs)], LAST, TARGET)
    draw(found.rows, given.out / "rounds_and_bytes.png")
    (given.out / "figures.csv").write_text(figures_csv(found.rows), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
