"""The Gram matrix of n parameter vectors, from which nearly every measure follows; and the weights that go with it.

A vector is a list of tensors (or name -> tensor): the trainable parameters of a half in their own order, each once,
no buffers. Inner products are accumulated in float64, tensor by tensor, so that no n x D copy is ever made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_sfl.core.aggregation import normalised
from lightning_sfl.core.errors import DataError

Vector = Sequence[Tensor] | Mapping[str, Tensor]
Weights = Literal["samples", "aggregation", "uniform"]
COLUMNS = 1 << 18
NAN = float("nan")


def trainable(module: nn.Module) -> list[Tensor]:
    """Live trainable parameters, each distinct tensor once, in the module's order: what a vector consists of."""
    return [parameter.detach() for parameter in module.parameters() if parameter.requires_grad]


def gram(rows: Sequence[Vector]) -> Tensor:
    """Inner products of the rows, (n, n) in float64 on the rows' device.

    Add a probe or the applied update as a further row. Subtract a reference state before: raw parameters lose the
    variance.
    """
    return cross_gram(rows, rows)


def cross_gram(left: Sequence[Vector], right: Sequence[Vector]) -> Tensor:
    """<left_i, right_j>, (len(left), len(right)) in float64; DataError when the vectors differ in names or shapes."""
    first = _columns([*left, *right] if left is not right else left)
    device = first[0][0].device if first else torch.device("cpu")
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=device)
    for column in first:
        for start in range(0, column[0].numel(), COLUMNS):
            block = torch.stack([tensor.reshape(-1)[start : start + COLUMNS] for tensor in column]).double()
            total += block[: len(left)] @ (block if left is right else block[len(left) :]).T
    return total


def _columns(rows: Sequence[Vector]) -> list[tuple[Tensor, ...]]:
    names = [list(row) for row in rows if isinstance(row, Mapping)]
    if names and (len(names) != len(rows) or any(set(other) != set(names[0]) for other in names)):
        raise DataError("vectors with different parameter names cannot be compared")
    order = names[0] if names else []
    lists = [[row[name] for name in order] if isinstance(row, Mapping) else list(row) for row in rows]
    if any([t.shape for t in row] != [t.shape for t in lists[0]] for row in lists[1:]):
        raise DataError("vectors with different parameter shapes cannot be compared")
    return list(zip(*lists, strict=True))


def weights_of(scheme: Weights, samples: Sequence[float], aggregation: Sequence[float]) -> Tensor:
    """Client weights of sum 1, float64: by rows trained on, as the aggregator had them, or equal."""
    values = {"samples": samples, "aggregation": aggregation, "uniform": [1.0] * len(samples)}[scheme]
    return torch.tensor(normalised(values), dtype=torch.float64)


def vanishes(square: float, reference: float) -> bool:
    """Whether a squared norm is zero but for rounding: inner products of size `reference` cancelled in its sum."""
    return not square > 1e-14 * reference


def quotient(numerator: float, denominator: float) -> float:
    """numerator / denominator, NaN where that is undefined; nothing is ever added to a denominator."""
    return numerator / denominator if denominator else NAN
