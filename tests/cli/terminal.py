"""The command line in this process: much quicker than a new interpreter, and just what `train.py` calls."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lightning_sfl.cli import main

SFL = "--config=configs/methods/sfl.yaml"
# Rows, clients and rounds so few that a run takes some tens of milliseconds.
SMALL = [
    "--data.source=Synthetic",
    "--data.source.rows=60",
    "--data.source.test_rows=20",
    "--data.partition=IID",
    "--data.num_clients=3",
    "--model.participants=2",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
]


class Terminal:
    """Types commands in a folder and reads what comes back."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capture = folder, capture
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py"])
        patch.setattr(sys, "path", list(sys.path))

    def types(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, what went to stdout, what went to stderr."""
        self.capture.readouterr()
        code = 0
        try:
            main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = self.capture.readouterr()
        return code, out, err

    def writes(self, name: str, text: str | bytes) -> str:
        """A file in the folder; its name."""
        (self.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    def is_refused(self, *arguments: str) -> str:
        """The one line with which these arguments are refused, nothing being written."""
        before = listing(self.folder)
        code, _, err = self.types(*arguments)
        assert code == 2, err
        assert err.count("\n") == 1, err
        assert err.startswith("error: "), err
        assert "Traceback" not in err
        assert "usage:" not in err
        assert len(err) < 1200
        assert listing(self.folder) == before
        return err


def listing(folder: Path) -> set[str]:
    """Everything below a folder, but what Python compiled."""
    found = (Path(place, name) for place, folders, files in os.walk(folder) for name in [*folders, *files])
    return {str(path) for path in found if "__pycache__" not in path.parts}
