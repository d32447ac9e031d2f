"""Cosine alignment: whether the clients' updates of one round point the same way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sfl.measures.gram import NAN, quotient, vanishes


@dataclass(frozen=True)
class Alignment:
    """Undefined values are NaN: with fewer than two valid clients there are no pairs.

    cos_pair: weighted mean of the pairwise cosines; cos_pair_nw: the same weighted by the norms too; norm_mean:
    weighted mean norm over all clients; n_valid: clients whose norm exceeds tau; cos_matrix: (n, n); cos_to_mean,
    conflict, norms: (n,), conflict_i being the mean of max(0, -cos_ij) over the valid j != i.
    """

    cos_pair: float
    cos_pair_nw: float
    norm_mean: float
    n_valid: int
    cos_matrix: Tensor
    cos_to_mean: Tensor
    conflict: Tensor
    norms: Tensor


def alignment(gram: Tensor, weights: Tensor, tau: float = 1e-7) -> Alignment:
    """Alignment of n updates from their Gram matrix (n, n) and weights (n,) of sum 1."""
    norms = _norms(gram)
    valid = norms > tau
    matrix = cosine_matrix(gram, valid)
    pairs = torch.outer(weights, weights) * _off_diagonal(gram)
    lengths = torch.outer(norms, norms)
    return Alignment(
        cos_pair=_cos_pair(matrix, pairs, valid),
        cos_pair_nw=quotient(float((pairs * gram).sum()), float((pairs * lengths).sum())),
        norm_mean=float(weights @ norms),
        n_valid=int(valid.sum()),
        cos_matrix=matrix,
        cos_to_mean=_cos_to_mean(gram, weights, valid),
        conflict=_conflict(matrix, valid),
        norms=norms,
    )


def cos_pair(gram: Tensor, weights: Tensor, tau: float = 1e-7) -> float:
    """The first field of `alignment` alone."""
    valid = _norms(gram) > tau
    return _cos_pair(cosine_matrix(gram, valid), torch.outer(weights, weights) * _off_diagonal(gram), valid)


def cosine_matrix(gram: Tensor, valid: Tensor) -> Tensor:
    """Pairwise cosines (n, n), NaN in the rows and columns of clients that are not valid."""
    norms = torch.where(valid, _norms(gram), NAN)
    matrix = (gram / torch.outer(norms, norms)).clamp(-1, 1)
    matrix.diagonal().copy_(torch.where(valid, 1.0, NAN))
    return matrix


def _norms(gram: Tensor) -> Tensor:
    return gram.diagonal().clamp(min=0).sqrt()


def _cos_pair(matrix: Tensor, pairs: Tensor, valid: Tensor) -> float:
    valid_pairs = pairs * torch.outer(valid, valid)
    return quotient(float((valid_pairs * matrix.nan_to_num()).sum()), float(valid_pairs.sum()))


def _off_diagonal(matrix: Tensor) -> Tensor:
    return 1 - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _cos_to_mean(gram: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    onto_mean = gram @ weights
    mean_square, square = float(weights @ onto_mean), gram.diagonal()
    if len(gram) < 2 or vanishes(mean_square, float(weights @ square)):
        return torch.full_like(onto_mean, NAN)
    cosines = (onto_mean / (square.clamp(min=0) * mean_square).sqrt()).clamp(-1, 1)
    return torch.where(valid, cosines, NAN)


def _conflict(matrix: Tensor, valid: Tensor) -> Tensor:
    against = ((-matrix).clamp(min=0).nan_to_num() * _off_diagonal(matrix)).sum(1)
    others = valid.sum() - 1
    return torch.where(valid & (others > 0), against / others, NAN)
