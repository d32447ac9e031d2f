"""The project's own errors: one family, so that a caller can tell a user's mistake from ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SFLError(Exception):
    """Root of every error raised on purpose; its text is one line for the user."""


class ConfigError(SFLError, ValueError):
    """A setting that cannot work: the text names the key, the value and what is allowed."""


class DataError(SFLError, ValueError):
    """Data that is missing, damaged, or does not fit the model."""


class CheckpointError(SFLError, RuntimeError):
    """A checkpoint that is damaged, foreign, or written by another method."""


class NonFiniteError(SFLError, ArithmeticError):
    """A NaN or infinity met before it could reach the weights."""


class PlacementError(SFLError, RuntimeError):
    """Processes that lost each other: one died, hangs, or is at another place of the run."""


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Raise `ConfigError` that names key, value and what is allowed, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}={value!r} is not allowed: {allowed}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean X? ` or nothing; what follows should list the known names."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.55)
    return f"did you mean {close[0]}? " if close else ""
