"""The scale of each client's gradient at the cut, by which methods differ under one and the same learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_sfl.measures.gram import NAN, quotient

IGNORED = -100


@dataclass(frozen=True)
class CutScales:
    """Of several messages, each field (messages,) in float64, NaN where undefined.

    norm: of the gradient before it was sent; sample_norm: mean norm of a row of it; denom: the number its summed loss
    was divided by; gain: ||sent|| / ||raw||; scale_rel: gain / denom * own predictions, 1 for the mean over the own
    batch.
    """

    norm: Tensor
    sample_norm: Tensor
    denom: Tensor
    gain: Tensor
    scale_rel: Tensor


def cut_scales(raw: Tensor, sent: Tensor, residuals: Tensor, gradients: Tensor, own: Tensor) -> CutScales:
    """From sums over each message.

    raw: (messages, 3), its row norms summed, their squares summed, its rows; the others (messages,). sent: squares;
    residuals, gradients: summed ||softmax - label|| and ||gradient at the logits||; own: the client's own predictions.
    """
    denom = _ratio(residuals, gradients)
    gain = _ratio(sent, raw[:, 1]).sqrt()
    return CutScales(raw[:, 1].sqrt(), _ratio(raw[:, 0], raw[:, 2]), denom, gain, gain * own / denom)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, NAN)


def effective_denominator(logits: Tensor, logits_gradient: Tensor, labels: Tensor) -> float:
    """What a summed cross-entropy was divided by, read off its gradient at the logits; NaN where that is zero.

    logits, logits_gradient: (..., classes); labels: (...) integers, or (..., classes) probabilities.
    """
    errors, gradients, _ = residuals(logits, logits_gradient, labels)
    return quotient(float(errors.sum()), float(gradients.sum()))


def residuals(logits: Tensor, logits_gradient: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """||softmax - label||, ||gradient|| and 1 for every prediction, each (predictions,); 0 for ignored labels."""
    classes = logits.shape[-1]
    probabilities = logits.detach().reshape(-1, classes).double().softmax(-1)
    if labels.shape == logits.shape:
        targets, counted = labels.reshape(-1, classes).double(), probabilities.new_ones(len(probabilities))
    else:
        flat = labels.reshape(-1).long()
        counted = (flat != IGNORED).double()
        targets = one_hot(flat.where(flat != IGNORED, 0), classes).double()
    errors = torch.linalg.vector_norm(probabilities - targets, dim=-1) * counted
    gradients = torch.linalg.vector_norm(logits_gradient.detach().reshape(-1, classes).double(), dim=-1)
    return errors, gradients, counted


def row_norms(parts: Sequence[Tensor]) -> Tensor:
    """Norm of every row over all parts of the cut, (rows,)."""
    norms = [torch.linalg.vector_norm(part.detach().flatten(1), dim=1) for part in parts]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)


def scale_ratio(scales: Sequence[float]) -> float:
    """Largest over smallest scale_rel of the clients: 1 when all are treated alike; NaN below two clients."""
    known = [scale for scale in scales if math.isfinite(scale)]
    return quotient(max(known), min(known)) if len(known) > 1 else NAN
