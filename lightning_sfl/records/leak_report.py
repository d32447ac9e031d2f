"""What `train.py leaks` found, as text, Markdown, CSV and JSON. No torch is loaded here."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_sfl.records.forms import Table, as_csv, as_markdown, as_text

Study = Mapping[str, Any]
AT_CUTS = {
    "cut_layer": "cut layer",
    "bytes_per_sample": "bytes per sample",
    "distance_correlation": "distance correlation",
    "with_noise": "with noise",
}
ATTACKED = {
    "what": "what is seen",
    "seen_by": "by",
    "rows": "rows sought",
    "error": "error",
    "guess_error": "error of blind guesses",
    "psnr_db": "PSNR, dB",
}
NOTE_CUTS = (
    "Distance correlation between inputs and smashed data, without the bias of many dimensions: 0 independent, 1 the "
    "same distances. The labels cross besides."
)
NOTE_ATTACK = (
    "Error: distance of the first client's rows from what was found, over their distance from the mean row: 0 found, 1 "
    "no better than the mean row. Blind guesses: other clients' rows. One attack of modest strength with known labels, "
    "after one step of plain SGD: where it fails, that is no proof that nothing can be found."
)


def tables(study: Study) -> list[Table]:
    """What crosses at each cut, and what the attack found."""
    rows = study["attack"]["rows"]
    title = f"Inversion at the cut after {study['cut_layer']}, {rows} row{'s' if rows > 1 else ''} of a client"
    return [
        _table("Smashed data and their inputs", study["cuts"], AT_CUTS, NOTE_CUTS),
        _table(title, study["seen"], ATTACKED, NOTE_ATTACK),
    ]


def as_screen(study: Study) -> str:
    """Both tables for a terminal."""
    parts = []
    for table in tables(study):
        parts += [table.title, as_text(table), textwrap.fill(table.note, 118)]
    return "\n\n".join(parts)


def write(study: Study, out: Path) -> list[str]:
    """Write everything into `out`; the names of the files."""
    out.mkdir(parents=True, exist_ok=True)
    parts = [f"## {study['method']}, {study['state']}"]
    for table in tables(study):
        parts += [f"### {table.title}", as_markdown(table), table.note]
    texts = {
        "leaks.json": json.dumps({"format": 1, **study}, indent=1, allow_nan=False) + "\n",
        "leaks.md": "\n\n".join(parts) + "\n",
        "cuts.csv": _csv(study["cuts"], AT_CUTS),
        "inversion.csv": _csv(study["seen"], ATTACKED),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    return [*texts]


def _csv(found: list[dict[str, Any]], columns: Mapping[str, str]) -> str:
    keys = [key for key in columns if key in found[0]]
    return as_csv(keys, [[one[key] for key in keys] for one in found])


def _table(title: str, found: list[dict[str, Any]], columns: Mapping[str, str], note: str) -> Table:
    keys = [key for key in columns if key in found[0]]
    rows = [[_cell(one[key]) for key in keys] for one in found]
    return Table(title, [columns[key] for key in keys], rows, [True] * len(keys), note)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
