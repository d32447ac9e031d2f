"""How much of a method's distance to SFL is its dynamics: train every method in every arm, then tell.

    python benchmarks/dynamics/study.py digits
    python benchmarks/dynamics/study.py mnist --data data/mnist

Trains what is missing (finished runs are left alone, stopped ones go on), then writes tables as Markdown and CSV and
pictures as SVG into the folder of runs. docs/dynamics.md says what is compared, how, and how long it takes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, this folder is no package yet

from benchmarks.dynamics import results
from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.plain_parser import PlainParser, plain_errors
from lightning_sfl.records import forms
from lightning_sfl.sweep_command import cores
from lightning_sfl.sweep_command import main as sweep

ROOT = Path(__file__).resolve().parents[2]
DATA_VARIABLE = "MNIST_PARQUET"


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Which study, and how much of it."""
    parser = PlainParser("", __doc__ or "")
    parser.prog = "study.py"
    parser.add_argument("study", choices=("digits", "mnist"), help="which of configs/experiments/dynamics_*.yaml")
    parser.add_argument("--data", help=f"mnist: folder of parquet files (or ${DATA_VARIABLE}; data/mnist)")
    parser.add_argument("--cache", help="mnist: folder for the decoded images (~/.cache/lightning_sfl)")
    parser.add_argument("--seeds", metavar="0,1,2", help="other seeds than the file's")
    parser.add_argument("--rounds", metavar="N", help="another number of rounds than the file's")
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=cores(), help="runs at a time (%(default)s, the cores)"
    )
    parser.add_argument("--last", type=int, default=5, help="rounds in the mean of the accuracy (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of runs and results (runs/dynamics_digits)")
    parser.add_argument("--only_tell", action="store_true", help="train nothing, tell what is there")
    return parser.parse_args(arguments)


def sweep_arguments(given: argparse.Namespace, out: Path) -> list[str]:
    """The sweep that trains this study."""
    words = ["--config", str(ROOT / f"configs/experiments/dynamics_{given.study}.yaml"), "--out", str(out)]
    words += ["--jobs", str(given.jobs)]
    data = given.data or os.environ.get(DATA_VARIABLE)
    require(given.study == "mnist" or given.data is None, "data", given.data, "nothing for digits, which come along")
    if given.study == "mnist" and data:
        require(Path(data).is_dir(), "data", data, "a folder of parquet files")
        words += ["--set", f"data.source.train={data}"]
    if given.study == "mnist" and given.cache:
        words += ["--set", f"data.source.cache_dir={given.cache}"]
    for option in ("seeds", "rounds"):
        if getattr(given, option) is not None:
            words += [f"--{option}", getattr(given, option)]
    return words


def tell(out: Path, last: int) -> None:
    """Read the runs that have finished, print the tables and write everything."""
    require(last >= 1, "last", last, "an integer >= 1")
    study = results.read([out], last)
    tables = [make(study) for make in (results.accuracies, results.gaps, results.changes, results.dynamics)]
    parts = [f"## {table.title}\n\n{forms.as_markdown(table)}\n\n{table.note}" for table in tables]
    (out / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (out / "results.csv").write_text(results.csv_of(study), encoding="utf-8")
    for table in tables:
        print(f"{table.title}\n{forms.as_text(table)}\n{table.note}\n")
    try:
        from benchmarks.dynamics.figures import draw
    except ImportError:
        print('pictures need matplotlib: pip install "lightning_sfl[report]"')
    else:
        draw(study, out)
    print(f"wrote results.md, results.csv and pictures into {out}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, then tell; exit code 1 when a run failed, 2 when the study cannot work, 130 after Ctrl-C."""
    given = options(arguments)
    out = given.out or Path(f"runs/dynamics_{given.study}")
    with plain_errors():
        words = sweep_arguments(given, out)
        if not given.only_tell:
            sweep(words)
        if not out.is_dir():
            raise ConfigError(f"out={str(out)!r} is not allowed: a folder with runs of a study")
        tell(out, given.last)


if __name__ == "__main__":
    main()
