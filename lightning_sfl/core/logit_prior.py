"""Logit adjustment of a client's loss by how frequent each class is among its rows (GAS)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FLOOR = 1e-12


def logit_prior(labels: np.ndarray, num_classes: int, exponent: float = 1.0) -> Tensor:
    """log(P(c)^exponent + 1e-12) for each class c, (classes,) float64; labels are all of the client's."""
    shares = np.bincount(labels, minlength=num_classes) / len(labels)
    return torch.from_numpy(np.log(shares**exponent + FLOOR))
