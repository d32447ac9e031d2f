"""What smashed data say of their inputs: distance correlation, without the bias that many dimensions bring.

G. J. Szekely, M. L. Rizzo, "The distance correlation t-test of independence in high dimension", J. Multivariate
Analysis 117 (2013); as a measure of leakage at the cut: P. Vepakomma et al., "NoPeek", ICDM Workshops 2020, who take
the biased one, which is near 1 for independent data as well when dimensions outnumber rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def distance_correlation(x: Tensor, z: Tensor) -> float:
    """Between rows of x (N, ...) and of z (N, ...), N >= 4: about 0 if independent, 1 if distances are proportional.

    The root of the bias-corrected squared correlation, or 0 where that is negative, as chance may have it; 0 too where
    all rows of one side are alike.
    """
    a, b = (_centred(torch.cdist(side, side)) for side in (x.flatten(1).double(), z.flatten(1).double()))
    product = (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()
    return float(product.nan_to_num(0.0).clamp(0, 1).sqrt())


def _centred(distances: Tensor) -> Tensor:
    """U-centred distances (N, N): rows and columns of sum 0 off the diagonal, which is 0."""
    count = len(distances)
    rows = distances.sum(dim=1) / (count - 2)
    every = distances.sum() / ((count - 1) * (count - 2))
    centred = distances - rows[:, None] - rows[None, :] + every
    return centred.fill_diagonal_(0)
