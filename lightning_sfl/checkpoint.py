"""Checkpoints that survive a kill, a full disk and a damaged file.

A checkpoint is the zip archive that `torch.save` writes, ended by a zip comment of fixed length: the round, and a
SHA-256 of everything before it. Zip readers skip the comment, so `torch.load(path, weights_only=True)` and the plain
Trainer read the file as they read any other. The digest tells damage from health; it is no signature.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.fabric.utilities import rank_zero_warn

from lightning_sfl.core.errors import CheckpointError
from lightning_sfl.durable import sweep, write_whole

FORMAT = 1
StrPath = str | os.PathLike[str]

_COMMENT = re.compile(rb"lightning_sfl/1 round=([-\d]\d{8}) sha256=([0-9a-f]{64})")
_DIGEST_BYTES = 64
_COMMENT_BYTES = len(b"lightning_sfl/1 round=000000000 sha256=") + _DIGEST_BYTES
_UNCOMMENTED_END = re.compile(rb"PK\x05\x06.{16}\0\0", re.DOTALL)
_UNCOMMENTED_END_BYTES = 22
_CHUNK_BYTES = 1 << 20
_NOT_PLAIN = "holds more than tensors and plain containers"


class DurableCheckpointIO(CheckpointIO):
    """Writes checkpoints so that a reader meets the old file or the new one, never a part; reads only what is intact.

    A file that is damaged, foreign or of a newer format is refused with a warning, and the newest good one of an
    earlier round in the same folder is taken instead.

    Args:
        allow_foreign: also read torch files without a digest, whose damage cannot be seen.
        fall_back: take the previous good checkpoint instead of a refused one; otherwise raise at once.
    """

    def __init__(self, allow_foreign: bool = False, fall_back: bool = True) -> None:
        self.allow_foreign = allow_foreign
        self.fall_back = fall_back

    def save_checkpoint(self, checkpoint: dict[str, Any], path: StrPath, storage_options: Any = None) -> None:
        """Write beside the target, flush to the disk, then replace; on any error the previous file stays as it was.

        Raises:
            CheckpointError: the disk refused, or the content could not be loaded again with `weights_only=True`.
        """
        if storage_options is not None:
            raise CheckpointError(f"storage_options={storage_options!r} is not allowed: checkpoints are local files")
        target = _local(path)
        content = _sealed(checkpoint)
        readable = partial(torch.load, map_location="cpu", weights_only=True, mmap=True)  # mapped: reads no weights
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target.parent)
            write_whole(target, content, accept=readable)
        except FileExistsError as error:
            raise CheckpointError(f"cannot write checkpoint {target}: another process is writing it") from error
        except OSError as error:
            raise CheckpointError(f"cannot write checkpoint {target}: {error.strerror or error}") from error
        except UnpicklingError as error:
            raise CheckpointError(f"cannot write checkpoint {target}: it {_NOT_PLAIN}") from error

    def load_checkpoint(
        self, path: StrPath, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`, or the newest good one of an earlier round where that file is refused.

        Raises:
            FileNotFoundError: nothing stands at `path`.
            CheckpointError: no file could be read; the text names each with its reason.
        """
        if weights_only is False:
            raise CheckpointError("weights_only=False is not allowed: it would run code from the file")
        asked = _local(path)
        if not asked.is_file():
            raise FileNotFoundError(f"checkpoint file not found: {asked}")
        sweep(asked.parent)
        refusals: list[str] = []
        for candidate in [asked, *_earlier(asked)] if self.fall_back else [asked]:
            try:
                checkpoint = self._read(candidate, map_location)
            except CheckpointError as error:
                refusals.append(str(error))
                continue
            if refusals:
                rank_zero_warn(f"checkpoint refused: {'; '.join(refusals)}; taking {candidate} instead")
            return checkpoint
        raise CheckpointError(f"no good checkpoint: {'; '.join(refusals)}")

    def remove_checkpoint(self, path: StrPath) -> None:
        """Delete a checkpoint; one that is gone is no error, one that cannot be deleted only warns."""
        try:
            _local(path).unlink(missing_ok=True)
        except OSError as error:
            rank_zero_warn(f"cannot remove checkpoint {path}: {error.strerror}")

    def _read(self, path: Path, map_location: Any) -> dict[str, Any]:
        try:
            with path.open("rb") as file:  # one open file: what was checked is what is loaded
                reason = _damage(file, self.allow_foreign)
                if reason is not None:
                    raise CheckpointError(f"{path} {reason}")
                file.seek(0)
                checkpoint = torch.load(file, map_location=map_location, weights_only=True)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnpicklingError as error:
            raise CheckpointError(f"{path} {_NOT_PLAIN}") from error
        if not isinstance(checkpoint, dict):
            raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
        written = checkpoint.get("lightning_sfl", {}).get("format", FORMAT)
        if written > FORMAT:
            raise CheckpointError(
                f"{path} has format {written}, this version reads up to {FORMAT}: update lightning_sfl"
            )
        return checkpoint


def verify(path: StrPath, allow_foreign: bool = False) -> str | None:
    """Why this file is refused, or None for an intact one; reads every byte and unpickles none."""
    try:
        with Path(path).open("rb") as file:
            return _damage(file, allow_foreign)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def newest_good(folder: StrPath) -> Path | None:
    """The intact `*.ckpt` of the latest round in `folder`, or None."""
    return next((path for path in _newest_first(Path(folder)) if verify(path) is None), None)


def _sealed(checkpoint: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(-2, os.SEEK_END)  # a zip file ends with the length of its comment, so far 0
    buffer.write(_COMMENT_BYTES.to_bytes(2, "little"))
    buffer.write(f"lightning_sfl/1 round={checkpoint.get('epoch', -1):09d} sha256=".encode())
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(digest.encode())
    return buffer.getbuffer()


def _damage(file: BinaryIO, allow_foreign: bool) -> str | None:
    covered = file.seek(0, os.SEEK_END) - _DIGEST_BYTES
    comment = _COMMENT.fullmatch(_last(file, _COMMENT_BYTES))
    if comment is None:
        if not _UNCOMMENTED_END.fullmatch(_last(file, _UNCOMMENTED_END_BYTES)):
            return "is damaged or no checkpoint: it does not end as one"
        return None if allow_foreign else "is foreign: it carries no digest of ours"
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(min(covered, _CHUNK_BYTES)):
        digest.update(chunk)
        covered -= len(chunk)
    return None if digest.hexdigest().encode() == comment[2] else "is damaged: its bytes do not match its digest"


def _last(file: BinaryIO, count: int) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - count))
    return file.read()


def _newest_first(folder: Path) -> list[Path]:
    """All checkpoints of a folder, the latest round first; of one round the file written last comes first."""
    files = [path for path in folder.glob("*.ckpt") if path.is_file()]
    return sorted(files, key=lambda path: (_round_of(path), path.stat().st_mtime_ns), reverse=True)


def _earlier(asked: Path) -> list[Path]:
    """What may stand in for `asked`: nothing of a later round, unless its own round cannot be told."""
    latest = _round_of(asked)
    others = [path for path in _newest_first(asked.parent) if not path.samefile(asked)]
    return [path for path in others if latest < 0 or _round_of(path) <= latest]


def _round_of(path: Path) -> int:
    """The round in the file's name, else the one in its comment, else -1."""
    named = re.search(r"(?:round|epoch)\D?(\d+)", path.stem)
    if named:
        return int(named[1])
    with suppress(OSError), path.open("rb") as file:
        comment = _COMMENT.fullmatch(_last(file, _COMMENT_BYTES))
        return int(comment[1]) if comment else -1
    return -1


def _local(path: StrPath) -> Path:
    if "://" in str(path):
        raise CheckpointError(f"checkpoint path {path} is not allowed: a local file is wanted")
    return Path(path)
