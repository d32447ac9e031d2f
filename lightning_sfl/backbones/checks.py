"""Range checks of the backbones' arguments: one clear line instead of a failure deep inside torch."""

from __future__ import annotations


def positive(**sizes: int) -> None:
    """Raise ValueError for the first size that is not a whole number of at least 1."""
    for key, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value!r} is not allowed: a whole number of at least 1")


def probability(**rates: float) -> None:
    """Raise ValueError for the first rate outside [0, 1); NaN is outside."""
    for key, value in rates.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{key}={value!r} is not allowed: at least 0 and below 1")


def one_of(choices: tuple[str, ...], **picks: str) -> None:
    """Raise ValueError for the first pick that is not among the choices."""
    for key, value in picks.items():
        if value not in choices:
            raise ValueError(f"{key}={value!r} is not allowed: one of {', '.join(choices)}")
