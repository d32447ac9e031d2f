"""What `train.py gradients` found, as text, Markdown, CSV, JSON and pictures. No torch is loaded here."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_sfl.records.forms import Table, as_csv, as_markdown, as_text

Study = Mapping[str, Any]
BLOCKS = {"client": "client half", "server": "server half", "full": "whole network"}
COLUMNS = {
    "server_steps": "server steps",
    "client_norm": "norm, client half",
    "server_norm": "norm, server half",
    "client_D_cos": "1 - cos, oracle, client",
    "server_D_cos": "1 - cos, oracle, server",
    "full_distance": "distance / oracle",
    "client_B": "B, client",
    "client_C": "C, client",
    "server_B": "B, server",
    "A_ratio": "A_ratio",
    "A_null": "A_null",
}
NOTE = (
    "One round of each method's own code at these weights, per unit of the learning rate. 1 - cos: 0 is the direction "
    "of the gradient on all clients' rows (oracle), 1 across it. Distance: from the oracle, over its length. B: 1 - "
    "cos with the gradient on held-out rows; C: the mean of that over the clients' own gradients. A_ratio: how far "
    "these disagree; A_null: its value for orthogonal ones. In the whole network the half with the larger norm decides."
)


def table_of(study: Study) -> Table:
    """A row per method."""
    rows = [[one["label"], *(_cell(one.get(key)) for key in COLUMNS)] for one in study["methods"]]
    return Table(title_of(study), ["method", *COLUMNS.values()], rows, [True] * (len(COLUMNS) + 1), NOTE)


def title_of(study: Study) -> str:
    """The checkpoint, and who was asked with what."""
    clients, rows = study["participants"], study["rows"]
    steps = study["local_steps"]
    work = f"{sum(rows)} rows in {steps} step{'s' if steps > 1 else ''}"
    return f"{study['checkpoint']}: {len(clients)} clients of round {study['round']}, {work}"


def as_screen(studies: Sequence[Study]) -> str:
    """Tables and cosines for a terminal."""
    parts = []
    for study in studies:
        parts += [
            title_of(study),
            as_text(table_of(study)),
            "Cosines, whole network",
            as_text(cosines_of(study, "full")),
        ]
    return "\n\n".join([*parts, textwrap.fill(NOTE, 118)]) + "\n"


def cosines_of(study: Study, block: str) -> Table:
    """Methods against methods, and against the oracle."""
    labels = study["labels"]
    rows = [[label, *map(_cell, row)] for label, row in zip(labels, study["cosines"][block], strict=True)]
    return Table(BLOCKS[block], ["cosine", *labels], rows, [True] * (len(labels) + 1))


def write(studies: Sequence[Study], out: Path) -> list[str]:
    """Write everything into `out`; returns what one should know about it."""
    out.mkdir(parents=True, exist_ok=True)
    _save(out / "gradients.json", json.dumps({"format": 1, "checkpoints": studies}, indent=1, allow_nan=False) + "\n")
    _save(out / "gradients.md", _markdown(studies))
    keys = list(dict.fromkeys(key for study in studies for one in study["methods"] for key in one))
    lines = [[s["checkpoint"], s["round"], *(one.get(key) for key in keys)] for s in studies for one in s["methods"]]
    _save(out / "gradients.csv", as_csv(["checkpoint", "round", *keys], lines))
    _save(out / "cosines.csv", as_csv(["checkpoint", "block", "one", "other", "cosine"], list(_pairs(studies))))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return ['pictures need matplotlib: pip install "lightning_sfl[report]"']
    from lightning_sfl.records.gradient_pictures import cosine_picture, norm_picture

    for number, study in enumerate(studies, 1):
        suffix = f"_{number}" if len(studies) > 1 else ""
        _save(out / f"cosines{suffix}.svg", cosine_picture(study))
        _save(out / f"norms{suffix}.svg", norm_picture(study))
    return []


def _pairs(studies: Sequence[Study]) -> Iterator[list[object]]:
    for study in studies:
        for block, matrix in study["cosines"].items():
            for one, row in zip(study["labels"], matrix, strict=True):
                for other, value in zip(study["labels"], row, strict=True):
                    yield [study["checkpoint"], block, one, other, value]


def _markdown(studies: Sequence[Study]) -> str:
    parts = []
    for study in studies:
        parts += [f"## {title_of(study)}", as_markdown(table_of(study)), NOTE]
        for block, name in BLOCKS.items():
            parts += [f"### Cosines, {name}", as_markdown(cosines_of(study, block))]
    return "\n\n".join(parts) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _save(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
