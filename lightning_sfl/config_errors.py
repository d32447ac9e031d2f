"""Turns a parser's long complaints into one line that names the key, the value and what is allowed."""

from __future__ import annotations

from typing import Any


def one_line(error: BaseException) -> str:
    """The message of an error with its line breaks and runs of blanks taken out."""
    return " ".join(str(error).split())


def explain(message: str, parser: Any) -> str:
    """What jsonargparse says, in one line."""
    return " ".join(message.split())
