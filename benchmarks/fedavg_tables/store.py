"""Results on file: one small JSON file a run, and one for the measured time of a round."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.fedavg_tables.cells import Cell, Run
from benchmarks.fedavg_tables.training import Outcome, telling
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.durable import sweep, write_whole
from lightning_sfl.records.curves import Point, crossing


@dataclass(frozen=True)
class Result:
    """A finished run, as it was read."""

    run: Run
    end: str
    rounds: int
    curve: list[Point]
    cpu_s: float

    def rounds_to(self, target: float) -> float | None:
        """By the paper's rule; None where the run never got there."""
        return crossing(self.curve, target)


class Store:
    """A folder of results: `runs/*.json`, `times.json`, and `part/*.ckpt` of the runs that were interrupted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self, run: Run) -> Path:
        """Where a run that is not finished goes on."""
        return self.folder / "part" / f"{run.name}.ckpt"

    def path(self, run: Run) -> Path:
        """Where its result stands."""
        return self.folder / "runs" / f"{run.name}.json"

    def read(self, run: Run) -> Result | None:
        """The result, None where there is none; refused when the cell was another one then."""
        content = read_json(self.path(run))
        if content is None:
            return None
        if content["cell"] != run.cell.definition():
            raise ConfigError(f"out={str(self.folder)!r} is not allowed: {run.name} was trained for another cell")
        curve = [(float(x), float(y)) for x, y in content["curve"]]
        return Result(run, content["end"], content["rounds"], curve, content["cpu_s"])

    def results(self, cell: Cell, seed: int, rates: tuple[float, ...]) -> dict[float, Result]:
        """Rate -> finished run of a cell."""
        found = {rate: self.read(Run(cell, rate, seed)) for rate in rates}
        return {rate: result for rate, result in found.items() if result is not None}

    def write(self, run: Run, outcome: Outcome, fingerprint: str) -> None:
        """Put a finished run on file, and drop its checkpoint."""
        content = {
            "cell": run.cell.definition(), "rate": run.rate, "seed": run.seed, "end": outcome.end,
            "rounds": outcome.rounds, "rounds_to_target": crossing(outcome.curve, run.cell.target),
            "cpu_s": round(outcome.cpu_s, 2), "wall_s": round(outcome.wall_s, 2), "partition": fingerprint,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "curve": [[x, round(y, 5)] for x, y in telling(outcome.curve)],
        }  # fmt: skip
        write_json(self.path(run), content)
        self.checkpoint(run).unlink(missing_ok=True)

    def times(self) -> dict[str, float]:
        """Kind of work -> measured processor seconds of a round."""
        return read_json(self.folder / "times.json") or {}

    def add_time(self, cell: Cell, seconds: float) -> None:
        """Put a round time on file."""
        write_json(self.folder / "times.json", {**self.times(), key_of(cell): round(seconds, 3)})

    def prepare(self) -> None:
        """Make the folders, and remove what killed writers left."""
        for name in ("runs", "part"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            sweep(self.folder / name)


def key_of(cell: Cell) -> str:
    """What a round time is filed under."""
    return " ".join("inf" if part is None else str(part) for part in cell.work if part != "")


def read_json(path: Path) -> Any:
    """Content, None where there is no file; a file that is no JSON is an error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)} is not a result: {error}") from None


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    write_whole(path, (json.dumps(content) + "\n").encode(), accept=lambda part: None)
