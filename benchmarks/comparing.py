"""Seconds that `compare` takes over many finished runs: tables, page and all pictures."""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from benchmarks.lanes import Lap, Ratio
from benchmarks.report import Row

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    "SFL": "sfl", "SFLV1": "sfl_v1", "SFLV2": "sfl_v2", "SplitLearning": "split_learning", "USFL": "usfl",
    "MiniBatchSFL": "minibatch_sfl", "GAS": "gas", "Mix2SFL": "mix2sfl", "MultiSFL": "multisfl", "FedAvg": "fedavg",
}  # fmt: skip
TRAINED = 2


def measure(runs: int, rounds: int, repeats: int) -> list[Row]:
    """The command as a process of its own, over runs whose records are those of a real run, round after round."""
    with TemporaryDirectory() as folder:
        size_mb = make(Path(folder), runs, rounds) / 2**20
        laps = [compared(Path(folder)) for _ in range(repeats)]
    walls = [lap.wall_s for lap in laps]
    cpu = statistics.median(lap.cpu_s for lap in laps)
    found = Ratio(statistics.median(walls), min(walls), max(walls), cpu, repeats)
    return [Row(f"compare, {runs} runs of {rounds} rounds", found, "s", "<= 10", {"records_mb": size_mb})]


def make(folder: Path, runs: int, rounds: int) -> int:
    """Train one short run, and write `runs` folders of its records under other methods and seeds; bytes of records."""
    options = [f"--trainer.default_root_dir={folder / 'real'}", f"--trainer.max_epochs={TRAINED}"]
    fit = ["train.py", "fit", "--config=configs/experiments/demo.yaml", *options]
    subprocess.run([sys.executable, *fit], cwd=ROOT, check=True, capture_output=True)
    real = folder / "real" / "sfl" / "version_0"
    records = [json.loads(line) for line in (real / "rounds.jsonl").read_text().splitlines()]
    config, manifest = yaml.safe_load((real / "config.yaml").read_text()), json.loads((real / "run.json").read_text())
    for number in range(runs):
        (label, name), seed = list(METHODS.items())[number % len(METHODS)], number // len(METHODS)
        own = copy.deepcopy(config) | {"seed_everything": seed}
        own["model"]["class_path"] = f"lightning_sfl.{label}"
        own["trainer"]["max_epochs"] = rounds
        place = folder / "runs" / f"{label}-seed{seed}"
        place.mkdir(parents=True)
        (place / "config.yaml").write_text(yaml.safe_dump(own))
        (place / "run.json").write_text(json.dumps({**manifest, "method": name, "seed": seed, "rounds": rounds}))
        lines = [json.dumps(record_of(records, round, number, name)) for round in range(rounds)]
        (place / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    return sum(path.stat().st_size for path in (folder / "runs").rglob("rounds.jsonl"))


def record_of(records: list[Any], round: int, number: int, name: str) -> dict[str, Any]:
    """A real record under another round, method and accuracy; totals grow from round to round."""
    record = copy.deepcopy(records[min(round, TRAINED - 1)]) | {"round": round, "method": name}
    scalars = record["scalars"]
    noise = np.random.default_rng([number, round]).normal(0, 0.01)
    scalars["val/acc"] = float(np.clip(0.95 - 0.9 * 0.95 ** (round + 1 + number % len(METHODS)) + noise, 0, 1))
    for tag in [tag for tag in scalars if "total" in tag]:
        scalars[tag] = records[0]["scalars"].get(tag, 0) * (round + 1)
    return record


def compared(folder: Path) -> Lap:
    """One run of the command."""
    command = [sys.executable, "train.py", "compare", str(folder / "runs"), "--out", str(folder / "out")]
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, os.times()
    return Lap(seconds, sum(after[2:4]) - sum(before[2:4]))
