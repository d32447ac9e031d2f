"""The gradient at the cut as one vector: that of the mean loss along a shift which all rows' smashed data share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_sfl.callbacks.rows import row_of
from lightning_sfl.core.cut import Smashed, like, parts
from lightning_sfl.core.events import CutGradient
from lightning_sfl.measures.cut_scale import residuals
from lightning_sfl.measures.gram import quotient


class CutShift(nn.Module):
    """Stands between the halves and adds the same zeros to every row, part by part; their gradient is wanted.

    It is the sum over rows of the mean loss' gradient at the cut: the mean over rows of the gradients of their losses.
    """

    def __init__(self, smashed: Smashed) -> None:
        super().__init__()
        self.zeros = nn.ParameterList(torch.zeros_like(part[0]) for part in parts(smashed))

    def forward(self, smashed: Smashed) -> Smashed:
        """The same values."""
        return like(smashed, [part + zero for part, zero in zip(parts(smashed), self.zeros, strict=True)])


def sent_along(event: CutGradient) -> Tensor | None:
    """The same of one message, as the server's backward left it, times what its summed loss was divided by.

    None where that cannot be told, since the gradient at the logits vanishes.
    """
    errors, slopes, counted = residuals(event.logits, event.logits_gradient, event.labels)
    denominator = quotient(float(errors.sum()), float(slopes.sum()))
    if not denominator > 0:
        return None
    return summed(event.raw).mul_(denominator / float(counted.sum()))


def summed(messages: Sequence[Tensor]) -> Tensor:
    """Over the rows, in float64, one part after another."""
    return row_of([part.detach().double().sum(0) for part in messages])
