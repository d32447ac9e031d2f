"""Columns of an Arrow table made into arrays: encoded images or lists of numbers, and integer labels."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lightning_sfl.core.errors import DataError, nearest

_IMAGE_NAMES = ("image", "img", "pixels", "x", "features")


def find_columns(columns: list[str], image: str, label: str, where: str) -> tuple[str, str]:
    """Names of the image and the label column; `auto` tries the usual image names."""
    if image == "auto":
        image = next((name for name in _IMAGE_NAMES if name in columns), image)
    for key, name in (("image_column", image), ("label_column", label)):
        if name not in columns:
            hint = nearest(name, columns)
            raise DataError(f"{where}: {key}={name!r} not found; {hint}columns are {', '.join(columns)}")
    return image, label


def decode(batches: Iterable[Any], columns: tuple[str, ...], rows: int, where: str) -> dict[str, np.ndarray]:
    """Arrays `x`, `y` and, with a third column, `owner`, from record batches or tables of `rows` rows in all."""
    x: np.ndarray | None = None
    y, done = np.empty(rows, np.int64), 0
    owner: list[Any] = []
    with tqdm(total=rows, desc=f"decoding {where}", unit="row", disable=None, leave=False) as bar:
        for batch in batches:
            images = [as_array(item, where) for item in batch.column(columns[0]).to_pylist()]
            x = np.empty((rows, *images[0].shape), images[0].dtype) if x is None else x
            for i, image in enumerate(images, start=done):
                if image.shape != x.shape[1:] or image.dtype != x.dtype:
                    found, first = f"{image.shape} {image.dtype}", f"{x.shape[1:]} {x.dtype}"
                    raise DataError(f"{where}: row {i} is {found}, but row 0 is {first}")
                x[i] = image
            y[done : done + len(images)] = _labels(batch.column(columns[1]), columns[1], where)
            owner += batch.column(columns[2]).to_pylist() if len(columns) > 2 else []
            done += len(images)
            bar.update(len(images))
    if x is None or done != rows:
        raise DataError(f"{where}: {done} rows read, {rows} announced")
    return {"x": x, "y": y} | ({"owner": np.array([str(name) for name in owner])} if owner else {})


def as_array(item: Any, where: str) -> np.ndarray:
    """One row: encoded image bytes to uint8 (channels, height, width); numbers to uint8 or finite float32.

    Numbers of two axes gain a channel axis; of three axes with 1, 3 or 4 last, the channels are moved to the front.
    """
    if isinstance(item, dict) and isinstance(item.get("bytes"), bytes):
        return _picture(item["bytes"], where)
    if isinstance(item, bytes):
        return _picture(item, where)
    if not isinstance(item, list) or not item:
        raise DataError(f"{where}: an image must be encoded bytes or a list of numbers, not {type(item).__name__}")
    return _numbers(item, where)


def _picture(content: bytes, where: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            grey = image.mode in ("1", "L", "I;16")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{where}: an image cannot be decoded ({error})") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _numbers(item: list[Any], where: str) -> np.ndarray:
    try:
        array: np.ndarray = np.array(item)
        array = array if array.dtype.kind in "iu" else array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: a row is not a regular array of numbers ({error})") from error
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)
    elif not np.isfinite(array := array.astype(np.float32)).all():
        raise DataError(f"{where}: a row holds NaN or infinity")
    if array.ndim == 3 and array.shape[2] in (1, 3, 4) and array.shape[0] not in (1, 3):
        return np.moveaxis(array, 2, 0)
    return np.expand_dims(array, 0) if array.ndim == 2 else array


def _labels(column: Any, name: str, where: str) -> np.ndarray:
    labels = np.array(column.to_pylist())
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.min() < 0:
        raise DataError(f"{where}: label_column={name!r} must hold one class number (0 or more) a row")
    return labels
