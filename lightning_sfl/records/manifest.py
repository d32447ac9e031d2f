"""The manifest of a run: `run.json`, what it is and what it met, so that others can tell whether they met the same.

Nothing in it depends on the time or on the folder, so that a run that goes on writes the same bytes again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_sfl.core.errors import DataError
from lightning_sfl.durable import sweep, write_whole

FILE_NAME = "run.json"
FORMAT = 1
Manifest = dict[str, Any]


def write_manifest(folder: Path | str, facts: Manifest) -> None:
    """Write `facts` to run.json in `folder`, whole or not at all; left alone where it says the same already."""
    path = Path(folder) / FILE_NAME
    content = (json.dumps({"format": FORMAT, **facts}, indent=1, allow_nan=False) + "\n").encode("ascii")
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    write_whole(path, content, accept=lambda part: json.loads(part.read_bytes()))


def read_manifest(folder: Path | str) -> Manifest:
    """The facts in `folder`, nothing where there is no run.json; DataError where it is damaged."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_bytes())
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise DataError(f"{path}: not a manifest; the file was damaged after it was written")
    return facts
