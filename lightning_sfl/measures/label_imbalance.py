"""Label imbalance: how far the labels of a batch are from all classes alike, 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sfl.core.population import Population
from lightning_sfl.core.server_groups import Labels
from lightning_sfl.measures.gram import NAN


def label_counts(steps: Sequence[Labels], num_classes: int) -> Tensor:
    """Rows of each class in each step, (steps, num_classes) in float64.

    Of a step: tensors of class numbers, of any shape, and what each of their entries counts for. Negative numbers are
    labels to be ignored; labels that are no class numbers (floating point) count for nothing.
    """
    flat = [
        (step, met if met.dim() == 1 else met.flatten(), share)
        for step, labels in enumerate(steps)
        for met, share in labels
        if not met.is_floating_point()
    ]
    if not flat:
        return torch.zeros(len(steps), num_classes, dtype=torch.float64)
    places, met, shares = zip(*flat, strict=True)
    classes = torch.cat(met).long()
    lengths = torch.tensor([len(each) for each in met])
    first = torch.tensor(places).mul_(num_classes).repeat_interleave(lengths).to(classes.device)
    share = torch.tensor(shares, dtype=torch.float64).repeat_interleave(lengths).to(classes.device)
    told = classes >= 0
    counts = torch.zeros(len(steps) * num_classes, dtype=torch.float64, device=classes.device)
    counts.index_add_(0, (first + classes)[told], share[told])
    return counts.view(len(steps), num_classes)


def imbalance(counts: Tensor) -> Tensor:
    """KL(p || uniform) / log C of each row of counts (batches, C): 0, all classes alike; 1, one class only.

    NaN where nothing was counted, and where there is only one class to count.
    """
    shares = counts / counts.sum(dim=-1, keepdim=True)
    classes = counts.shape[-1]
    if classes < 2:
        return torch.full_like(shares[..., 0], NAN)
    return (1 + torch.xlogy(shares, shares).sum(dim=-1) / math.log(classes)).clamp(0, 1)


def main_label(population: Population | None, client: int) -> int | None:
    """The label that most of a client's rows have, the smallest of equals; None where labels are no classes of rows."""
    if population is None or population.y.dim() != 1 or population.y.is_floating_point():
        return None
    labels = torch.from_numpy(population.labels_of(population.rows[client]))
    classes, counts = labels[labels >= 0].unique(return_counts=True)
    return int(classes[counts == counts.max()][0]) if len(classes) else None
