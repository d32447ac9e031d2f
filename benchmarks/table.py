"""`make table`: the README's comparison out of finished runs, put between its two marks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_sfl.records.compare import Comparison, compare
from lightning_sfl.records.figures import Row
from lightning_sfl.records.forms import PM
from lightning_sfl.records.tables import percent, plain, reached

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- table: make table -->", "<!-- end of table -->"
LAST, TARGET = 5, 0.8
COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: row.group.class_name,
    f"accuracy %, last {LAST}": lambda row: percent(row.figures["accuracy"]),
    f"rounds to {TARGET:.0%}": lambda row: reached(row.figures["rounds_to_target"]),
    f"MB to {TARGET:.0%}": lambda row: reached(row.figures["mb_to_target"]),
    "client / server steps a round": lambda row: " / ".join(
        plain(row.figures[name]) for name in ("client_per_round", "server_per_round")
    ),
    "gradient scale at the cut": lambda row: plain(row.figures["scale_rel"]),
}


def table(found: Comparison) -> str:
    """The table, one line for each method, and a line on seeds and rounds."""
    marks = ["---", *["---:"] * (len(COLUMNS) - 1)]
    lines = [[*COLUMNS], *[[cell(row) for cell in COLUMNS.values()] for row in found.rows]]
    shown = ["| " + " | ".join(line) + " |" for line in lines]
    seeds = sorted({seed for row in found.rows for seed in row.group.seeds if seed is not None})
    rounds = sorted({run.rounds for row in found.rows for run in row.group.runs})
    runs = f"Seeds {', '.join(map(str, seeds))}; {', '.join(map(str, rounds))} rounds"
    told = f"{runs}; mean {PM} sample standard deviation over the seeds."
    return "\n".join([shown[0], f"|{'|'.join(marks)}|", *shown[1:], "", told])


def placed(text: str, made: str) -> str:
    """The README with the table in its place; ValueError where a mark is missing."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"\n{END}")
    if not begin or not end:
        raise ValueError(f"the README lacks {BEGIN} or {END}")
    return f"{before}{begin}{made}{end}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs, print the table, write the README."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="?", default="runs/compare_digits", help="folder of the sweep's runs")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file that is written")
    given = parser.parse_args(arguments)
    made = table(compare([given.runs], LAST, TARGET))
    text = given.readme.read_text(encoding="utf-8")
    given.readme.write_text(placed(text, made), encoding="utf-8", newline="\n")
    print(made)


if __name__ == "__main__":
    main()
