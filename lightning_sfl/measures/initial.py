"""Distance between the states from which the clients of one round start; exactly zero for synchronous methods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sfl.measures.alignment import alignment
from lightning_sfl.measures.gram import NAN, quotient


@dataclass(frozen=True)
class InitialDistance:
    """dist: root mean square distance of two starts; rel: dist / ||anchor||; offsets: distances to the anchor, (n,);
    cos: mean cosine of two offsets, NaN where fewer than two differ from the anchor."""

    dist: float
    rel: float
    offsets: Tensor
    cos: float


def initial_distance(gram: Tensor, anchor_norm: float) -> InitialDistance:
    """From the Gram matrix (n, n) of the rows start_i - anchor, the anchor being the global half."""
    squares = gram.diagonal()
    count = len(gram)
    distances = (squares[:, None] + squares[None, :] - 2 * gram).clamp(min=0)
    dist = float((distances.sum() / (count * (count - 1))).sqrt()) if count > 1 else NAN
    uniform = torch.full((count,), 1 / count, dtype=gram.dtype, device=gram.device) if count else squares
    cos = alignment(gram, uniform, tau=0).cos_pair if count > 1 and bool(squares.any()) else NAN
    return InitialDistance(dist, quotient(dist, anchor_norm), squares.clamp(min=0).sqrt(), cos)
