"""Pages of the docs whose commands train a small run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.cli.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--data.num_clients=10", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=2"]


def page_of(name: str) -> str:
    """The text of a page of docs."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def commands_of(page: str) -> list[str]:
    """What a reader is told to type behind `python train.py`."""
    return re.findall(r"^\$ python train.py (.*)$", page, re.MULTILINE)


def trains(command: str, terminal: Terminal) -> None:
    """The command trains and records two rounds, made small."""
    code, _, err = terminal.types(*shlex.split(command), *SMALL)
    assert (code, err) == (0, "")
    (records,) = terminal.folder.glob("runs/*/version_0/rounds.jsonl")
    assert len(records.read_text().splitlines()) == 2
