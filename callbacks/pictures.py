"""A matrix as an image: blue for -1, white for 0, red for 1, grey where nothing is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BLUE, WHITE, RED, GREY = (
    np.array(colour, dtype=float) for colour in ([33, 102, 172], [247] * 3, [178, 24, 43], [200] * 3)
)
SMALLEST_PIXELS = 160


def diverging(matrix: Sequence[Sequence[float]]) -> np.ndarray:
    """Image (height, width, 3) of bytes; every entry is a square of the same size."""
    values = np.asarray(matrix, dtype=float)
    known = np.isfinite(values)
    share = np.where(known, values, 0).clip(-1, 1)[..., None]
    colours = WHITE + np.maximum(share, 0) * (RED - WHITE) + np.maximum(-share, 0) * (BLUE - WHITE)
    pixels = np.where(known[..., None], colours, GREY).round().astype(np.uint8)
    size = max(1, -(-SMALLEST_PIXELS // max(1, *values.shape)))
    return pixels.repeat(size, axis=0).repeat(size, axis=1)
