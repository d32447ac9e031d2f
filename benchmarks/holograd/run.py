"""Runs the experiments E1 ... E7 that decide the claims about HoloGrad, draws their figures and writes the summary.

python benchmarks/holograd/run.py            # all, some minutes; goes on where it was stopped
python benchmarks/holograd/run.py e3 e7      # two of them
python benchmarks/holograd/run.py --out runs/claims --against benchmarks/holograd/results  # anew elsewhere, and compare
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, this folder is no package yet

import torch

from benchmarks.holograd import (
    e1_variability,
    e2_kd_ratio,
    e3_momentum,
    e4_subspace,
    e5_unbiased,
    e6_proofs,
    e7_byzantine,
)
from benchmarks.holograd.against import compared
from benchmarks.holograd.cells import measure_all
from benchmarks.holograd.setting import Setting
from benchmarks.holograd.sizes import SIZES
from benchmarks.holograd.summary import write_summary
from benchmarks.holograd.tasks import BUNDLED, FROM_FOLDER

EXPERIMENTS = {
    "e1": e1_variability, "e2": e2_kd_ratio, "e3": e3_momentum, "e4": e4_subspace, "e5": e5_unbiased, "e6": e6_proofs,
    "e7": e7_byzantine,
}  # fmt: skip
RESULTS = Path(__file__).resolve().parent / "results"


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What to run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("experiments", nargs="*", help=f"{', '.join(EXPERIMENTS)}; all by default")
    parser.add_argument(
        "--size", choices=SIZES, default="tiny", help="tiny decides the claims, quick shows that it runs"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of every experiment")
    known = ", ".join((*BUNDLED, *FROM_FOLDER))
    parser.add_argument(
        "--tasks", default=",".join(BUNDLED), help=f"of {known}; the first is the one that is trained on"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with shakespeare/input.txt and mnist/*.parquet for tasks that need it"
    )
    parser.add_argument("--anew", action="store_true", help="forget what is measured; without it only gaps are filled")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of data/, figures/ and RESULTS_SUMMARY.md")
    parser.add_argument(
        "--against", type=Path, help="folder of other results; the exit code is 1 where a verdict differs"
    )
    chosen = parser.parse_args(arguments)
    for key, given, allowed in (
        ("experiments", chosen.experiments, list(EXPERIMENTS)),
        ("tasks", chosen.tasks.split(","), [*BUNDLED, *FROM_FOLDER]),
    ):
        unknown = [name for name in given if name not in allowed]
        if unknown:
            parser.error(f"{key}={' '.join(unknown)} is not allowed: {', '.join(allowed)}")
    if chosen.seeds < 2:
        parser.error(f"seeds={chosen.seeds} is not allowed: 2 or more, for an interval")
    if chosen.against is not None and not (chosen.against / "data" / "verdicts.json").exists():
        parser.error(f"against={chosen.against} is not allowed: a folder with data/verdicts.json in it")
    needed = [name for name in chosen.tasks.split(",") if name in FROM_FOLDER]
    for name in needed:
        if chosen.data is None or not (chosen.data / FROM_FOLDER[name]).exists():
            parser.error(
                f"data={chosen.data} is not allowed: task {name} needs a folder with {FROM_FOLDER[name]} in it"
            )
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, draw, summarize."""
    chosen = options(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="robust.trim")
    setting = Setting(chosen.size, tuple(chosen.tasks.split(",")), tuple(range(chosen.seeds)), chosen.data)
    begun = time.perf_counter()
    for name in chosen.experiments or EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        path = chosen.out / "data" / f"{experiment.FILE}.json"
        if chosen.anew:
            path.unlink(missing_ok=True)
        rows = measure_all(path, experiment.cells(setting), partial(experiment.measure, setting), setting.recorded())
        experiment.draw(rows, setting, chosen.out / "figures")
    path = write_summary(list(EXPERIMENTS.values()), setting, chosen.out)
    print(f"{time.perf_counter() - begun:.0f} s, {time.process_time():.0f} s of processor time; wrote {path}")
    if chosen.against is not None:
        lines, agree = compared(chosen.out, chosen.against)
        print("\n".join(lines))
        if not agree:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
