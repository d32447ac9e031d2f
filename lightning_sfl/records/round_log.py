"""The round log: `rounds.jsonl`, one JSON object per finished round, append-only.

A run may be killed at any byte. A torn last line is not an error: it is dropped when the run resumes and skipped by
readers. No clock time is written, so that a resumed run leaves the same bytes as one that was never stopped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning_sfl.core.errors import DataError
from lightning_sfl.durable import sweep, write_whole

FILE_NAME = "rounds.jsonl"
SCHEMA = 1
Record = dict[str, Any]


class RoundLog:
    """Appends records to the file at `path`; every append is on disk when it returns."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def append(self, record: Record) -> None:
        """Write one line. ValueError on NaN or infinity: such values are dropped when the report is made."""
        line = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(line.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())


def resume(path: Path | str, round: int) -> tuple[RoundLog, list[Record]]:
    """The log from which `round` is about to be written, and the records before it, which it keeps.

    Lines of `round` and later ones, and a torn last line, are dropped; the file is replaced whole or not at all.
    """
    path = Path(path)
    lines = _whole_lines(path) if path.exists() else []
    kept = [(line, record) for line, record in lines if record["round"] < round]
    content = b"".join(line + b"\n" for line, _ in kept)
    if path.exists() and path.read_bytes() != content:
        sweep(path.parent)
        write_whole(path, content, accept=read_rounds)
    return RoundLog(path), [record for _, record in kept]


def read_rounds(path: Path | str) -> list[Record]:
    """The records of a log, oldest first, without a torn last line; DataError when any other line is damaged."""
    return [record for _, record in _whole_lines(Path(path))]


def _whole_lines(path: Path) -> list[tuple[bytes, Record]]:
    lines = path.read_bytes().split(b"\n")
    if not lines[-1]:
        lines.pop()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            complete = isinstance(record, dict) and isinstance(record.get("round"), int)
        except ValueError:
            complete = False
        if complete:
            found.append((line, record))
        elif number < len(lines):
            raise DataError(f"{path}: line {number} is not a round record; the file was damaged after it was written")
    return found
