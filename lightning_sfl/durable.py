"""Files that arrive whole or not at all, whatever kills the writer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

PART = ".sfl.part"


def write_whole(target: Path, content: bytes | memoryview, accept: Callable[[Path], object]) -> None:
    """Put `content` in the place of `target`: written beside it, flushed to the disk, moved over it in one stroke.

    accept is called with the written file before the move and may raise to prevent it. On any error, which is passed
    on, the previous file is as it was and nothing else stays behind; after a kill `sweep` removes the rest.
    """
    part = target.with_name(target.name + PART)
    file = part.open("xb")
    try:
        with file:
            _lock(file)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        accept(part)
        os.replace(part, target)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    _flush_folder(target.parent)


def sweep(folder: Path) -> None:
    """Delete what writers that died left in `folder`; what a living one is writing is locked and stays."""
    for part in folder.glob("*" + PART):
        with suppress(OSError), part.open("rb") as file:
            _lock(file)
            part.unlink()


def _lock(file: BinaryIO) -> None:
    """Hold the file until it is closed or its process dies; OSError where another holds it."""
    if sys.platform != "win32":  # there an open file cannot be deleted, which serves as well
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flush_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
