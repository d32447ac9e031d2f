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
    was divided by; gain: ||sent|| / ||the rows that it was made of||; scale_rel: gain / denom * own predictions, 1 for
    the mean over the own batch.
    """

    norm: Tensor
    sample_norm: Tensor
    denom: Tensor
    gain: Tensor
    scale_rel: Tensor


def cut_scales(raw: Tensor, changed: Tensor, residuals: Tensor, gradients: Tensor, own: Tensor) -> CutScales:
    """From sums over each message.

    raw: (messages, 3), its row norms summed, their squares summed, its rows; changed: (messages, 2), squares of the
    rows sent and of those they were before; the others (messages,). residuals, gradients: summed ||softmax - label||
    and ||gradient at the logits||; own: the client's own predictions.
    """
    denom = _ratio(residuals, gradients)
    gain = _ratio(changed[:, 0], changed[:, 1]).sqrt()
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
    """||softmax - label||, ||gradient|| and 1 for every prediction, each (predictions,); 0 for ignored labels.

    Norms are over the classes in which the label has no share, where there are such: at the label itself the gradient
    of a confident prediction is a difference from 1, of which single precision keeps no digit.
    """
    classes = logits.shape[-1]
    probabilities = logits.detach().reshape(-1, classes).double().softmax(-1)
    if labels.shape == logits.shape:
        targets, counted = labels.reshape(-1, classes).double(), probabilities.new_ones(len(probabilities))
    else:
        flat = labels.reshape(-1).long()
        counted = (flat != IGNORED).double()
        targets = one_hot(flat.where(flat != IGNORED, 0), classes).double()
    exact = targets == 0
    compared = exact | ~exact.any(-1, keepdim=True)
    errors = torch.linalg.vector_norm((probabilities - targets) * compared, dim=-1) * counted
    slopes = logits_gradient.detach().reshape(-1, classes).double() * compared
    gradients = torch.linalg.vector_norm(slopes, dim=-1)
    kinds = torch.finfo(logits_gradient.dtype)
    told = gradients > kinds.tiny / kinds.eps  # below, numbers have fewer digits, and then none
    return errors * told, gradients * told, counted


def row_norms(parts: Sequence[Tensor]) -> Tensor:
    """Norm of every row over all parts of the cut, (rows,)."""
    norms = [torch.linalg.vector_norm(part.detach().flatten(1), dim=1) for part in parts]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)


def source_norms(raw: Tensor, sent: Tensor, steps: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Norms that the sent rows had before they were sent, from the norms before and after, all (rows,).

    Where the sent norms of a step are the raw ones times one factor, in any order, rows have changed places between
    clients and the factor is everyone's; otherwise each row is taken to come from its own place. A client's gain would
    mix the norms of its rows with those of others, were they compared place by place. steps: (rows,) from 0 on.
    """
    count = int(steps.max()) + 1
    factors = _ratio(*(raw.new_zeros(count).index_add_(0, steps, norms.square()) for norms in (sent, raw))).sqrt()[
        steps
    ]
    pairs = ((sent, factors * raw), (_sorted_within(sent, steps), factors * _sorted_within(raw, steps)))
    off = [~torch.isclose(one, other, rtol=tolerance, atol=0) for one, other in pairs]
    in_place, exchanged = (raw.new_zeros(count).index_add_(0, steps, each.to(raw)) == 0 for each in off)
    return torch.where((exchanged & ~in_place)[steps], sent / factors, raw)


def _sorted_within(values: Tensor, steps: Tensor) -> Tensor:
    """Values in ascending order step by step; `steps` ascends."""
    order = values.argsort()
    return values[order[steps[order].argsort(stable=True)]]


def scale_ratio(scales: Sequence[float]) -> float:
    """Largest over smallest scale_rel of the clients: 1 when all are treated alike; NaN below two clients."""
    known = [scale for scale in scales if math.isfinite(scale)]
    return quotient(max(known), min(known)) if len(known) > 1 else NAN
