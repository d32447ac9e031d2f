"""Folders of runs: where they are below a path, and how far each has come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lightning_sfl.core.errors import DataError, require
from lightning_sfl.records.manifest import read_manifest
from lightning_sfl.records.round_log import FILE_NAME

CONFIG = "config.yaml"


def run_folders(paths: Iterable[str | Path]) -> list[Path]:
    """Folders with records or a config at or below the paths, in the order of their names; each path must hold one."""
    found: dict[Path, None] = {}
    for path in paths:
        require(Path(path).is_dir(), "runs", str(path), "the folder of a run, or a folder of runs")
        below = sorted({file.parent for name in (FILE_NAME, CONFIG) for file in Path(path).rglob(name)})
        require(bool(below), "runs", str(path), f"a folder with runs in it, which have a {FILE_NAME}")
        found.update(dict.fromkeys(below))
    return list(found)


def newest_run(folder: Path) -> Path | None:
    """The run at or below `folder` that was begun last; None where there is none."""
    begun = sorted(folder.rglob(CONFIG), key=lambda file: file.stat().st_mtime)
    return begun[-1].parent if begun else None


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a run, nothing where it has no config.yaml (a run from Python); DataError where it is damaged."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise DataError(f"{path} is not a run's config")
    return document


def last_record(folder: Path) -> dict[str, Any]:
    """The newest whole line of the round log, nothing where there is none; only the end of the file is read."""
    path = folder / FILE_NAME
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        size, step = file.seek(0, 2), 1 << 16
        while True:
            file.seek(max(0, size - step))
            lines = file.read().split(b"\n")[:-1]
            if len(lines) > 1 or step >= size:
                break
            step *= 4
    try:
        record = json.loads(lines[-1]) if lines else {}
    except ValueError as error:
        raise DataError(f"{path}: the last line is not a round record") from error
    return record if isinstance(record, dict) else {}


def has_all_rounds(folder: Path | None, rounds: int | None) -> bool:
    """Whether the log of the run in `folder` holds every round it was to write; `rounds` None asks its config.

    A run that stopped because its budget was used up was to do no more.
    """
    if folder is None:
        return False
    config = read_config(folder)
    planned = rounds or (config.get("trainer") or {}).get("max_epochs")
    every = (config.get("round_record") or {}).get("every", 1)
    planned = read_manifest(folder).get("stopped", {}).get("rounds", planned)
    last = last_record(folder).get("round")
    return bool(planned and every and last is not None and last >= (planned - 1) // every * every)
