"""What the terminal shows, and what it is spared."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import click


def fail(message: str, code: int = 2) -> None:
    """End with one line on the error stream."""
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def shown(path: str) -> str:
    """A path relative to the current folder where that is shorter."""
    return min(str(Path(path)), os.path.relpath(path), key=len)


def quiet_warnings() -> None:
    """Silence advice that does not apply here; the first screen says what Lightning's notes would."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    notes = (
        "is not empty",
        "intended to run from within Python",
        "LeafSpec.*is deprecated",
        "callbacks used to create",
        "dirpath has changed",
        "JsonargparseDeprecationWarning",  # Lightning's words to its parser, which we cannot change
        "deprecated in v4",
        "have no logger configured",
    )
    for note in notes:
        warnings.filterwarnings("ignore", message=f"(?s).*{note}")
