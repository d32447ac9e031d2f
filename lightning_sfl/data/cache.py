"""Decoded arrays kept on disk, so that images are decoded once on a machine."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

_FORMAT = 1
Arrays = dict[str, np.ndarray]


def cache_path(folder: str | None, name: str, files: list[Path], options: tuple[object, ...]) -> Path:
    """Where the decoded form of these files lies: keyed on names, sizes and times of change, and on the options."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((_FORMAT, stats, options)).encode()).hexdigest()[:16]
    root = Path(folder).expanduser() if folder else Path.home() / ".cache" / "lightning_sfl"
    return root / f"{name}-{key}.npz"


def read_cache(path: Path) -> Arrays | None:
    """The arrays, or None where there are none or the file is damaged (every member carries a checksum)."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"cache {path} is damaged and is written anew ({error})", stacklevel=2)
        return None


def write_cache(path: Path, arrays: Arrays) -> None:
    """Write beside the target, then replace it: several processes may do so. A folder that refuses is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-", delete=False) as file:
            temporary = Path(file.name)
            try:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"decoded data cannot be kept in {path.parent} ({error}); give cache_dir", stacklevel=2)
