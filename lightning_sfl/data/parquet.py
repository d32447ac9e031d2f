"""Data sets in the Hugging Face hub's layout: parquet files on disk, or by name from the hub (extra `data`)."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from lightning_sfl.core.errors import DataError
from lightning_sfl.data.cache import cache_path, read_cache, write_cache
from lightning_sfl.data.decode import decode, find_columns
from lightning_sfl.data.source import Corpus, Source

_BATCH_ROWS = 1000
_INSTALL = 'pip install "lightning_sfl[data]"'


class Parquet(Source):
    """Local parquet files: images as encoded bytes or lists of numbers, labels as class numbers.

    train, test: a file, a pattern, or a folder, searched for names with `train` or `test` in them; without `test` the
    test files are looked for in `train`. `owner_column` names the natural client of a row (a writer). Decoded once to
    uint8 (rows, channels, height, width) and kept in `cache_dir` (default ~/.cache/lightning_sfl).
    """

    def __init__(
        self,
        train: str,
        test: str | None = None,
        image_column: str = "auto",
        label_column: str = "label",
        owner_column: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.train, self.test, self.cache_dir = train, test, cache_dir
        self.image_column, self.label_column, self.owner_column = image_column, label_column, owner_column

    @override
    def load(self) -> Corpus:
        train = self._read(find_files(self.train, "train"), "train")
        test = self._read(find_files(self.train if self.test is None else self.test, "test"), "test")
        return corpus_of(train, test, Path(self.train).name.removesuffix(".parquet"))

    def _read(self, files: list[Path], part: str) -> dict[str, np.ndarray]:
        options = (self.image_column, self.label_column, self.owner_column if part == "train" else None)
        path = cache_path(self.cache_dir, part, files, options)
        arrays = read_cache(path)
        if arrays is None:
            pieces = [self._decode(file, options) for file in files]
            arrays = {name: _joined([piece[name] for piece in pieces], str(files[0])) for name in pieces[0]}
            write_cache(path, arrays)
        return arrays

    def _decode(self, file: Path, options: tuple[str, str, str | None]) -> dict[str, np.ndarray]:
        arrow, parquet = _pyarrow()
        try:
            with parquet.ParquetFile(file) as content:
                columns = _columns(content.schema_arrow.names, options, file.name)
                batches = content.iter_batches(_BATCH_ROWS, columns=list(columns))
                return decode(batches, columns, content.metadata.num_rows, file.name)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable parquet file ({_first_line(error)})") from error


class Hub(Source):
    """A data set of the Hugging Face hub by name (`ylecun/mnist`, `uoft-cs/cifar10`), decoded anew at each load.

    The library keeps the download in its own cache. Name a `revision` to pin what is compared.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        revision: str | None = None,
        image_column: str = "auto",
        label_column: str = "label",
        owner_column: str | None = None,
        test_split: str = "test",
    ) -> None:
        self.name, self.config, self.revision, self.test_split = name, config, revision, test_split
        self.image_column, self.label_column, self.owner_column = image_column, label_column, owner_column

    @override
    def load(self) -> Corpus:
        train = self._read("train", self.owner_column)
        return corpus_of(train, self._read(self.test_split, None), self.name.rsplit("/")[-1])

    def _read(self, split: str, owner_column: str | None) -> dict[str, np.ndarray]:
        try:
            import datasets
        except ImportError as error:
            raise DataError(f"source Hub needs the package datasets: {_INSTALL}") from error
        try:
            table = datasets.load_dataset(self.name, self.config, split=split, revision=self.revision)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"hub data set {self.name!r}, split {split!r}: {_first_line(error)}") from error
        columns = _columns(table.column_names, (self.image_column, self.label_column, owner_column), self.name)
        return decode(table.with_format("arrow").iter(_BATCH_ROWS), columns, len(table), f"{self.name} {split}")


def find_files(where: str, part: str) -> list[Path]:
    """Parquet files of one part, by name; a folder is searched to any depth for the part's name in the file's."""
    path = Path(where).expanduser()
    if path.is_dir():
        files = [file for file in path.rglob("*.parquet") if part in file.name]
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True)]
    if not files:
        wanted = f"no *{part}*.parquet in this folder" if path.is_dir() else "no such file"
        raise DataError(f"source Parquet: {part} data {where}: {wanted}")
    return sorted(files)


def corpus_of(train: dict[str, np.ndarray], test: dict[str, np.ndarray], name: str) -> Corpus:
    """Tensors of both parts; the number of classes is one more than the largest label of either."""
    x, y, test_x, test_y = (torch.from_numpy(part[key]) for part in (train, test) for key in ("x", "y"))
    owner = np.unique(train["owner"], return_inverse=True)[1] if "owner" in train else None
    return Corpus(x, y, test_x, test_y, int(max(y.max(), test_y.max())) + 1, name, owner)


def _columns(names: list[str], options: tuple[str, str, str | None], where: str) -> tuple[str, ...]:
    image, label, owner = options
    if owner is not None and owner not in names:
        raise DataError(f"{where}: owner_column={owner!r} not found; columns are {', '.join(names)}")
    found = find_columns(names, image, label, where)
    return found if owner is None else (*found, owner)


def _joined(pieces: list[np.ndarray], where: str) -> np.ndarray:
    if len({(piece.shape[1:], piece.dtype.kind) for piece in pieces}) > 1:
        raise DataError(f"{where} and its sister files hold rows of different shape or type")
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"source Parquet needs the package pyarrow: {_INSTALL}") from error
    return pyarrow, parquet


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
