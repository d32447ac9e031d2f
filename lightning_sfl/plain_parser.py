"""A parser for commands that need no torch: its errors are one line and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from lightning_sfl.core.errors import SFLError


class PlainParser(argparse.ArgumentParser):
    """argparse without abbreviations, usage text in errors, or rewrapped descriptions."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"train.py {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the usage text."""
        fail(f"{message}; see {self.prog} --help")


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one line on the error stream."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


@contextmanager
def plain_errors() -> Iterator[None]:
    """A user's mistake becomes one line and exit code 2."""
    try:
        yield
    except BrokenPipeError:  # nobody reads any more: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (SFLError, OSError) as error:
        fail(str(error))
