"""A forward pass that leaves no trace: without gradients, dropout, batch statistics or changes of buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def evaluated(half: nn.Module, x: Tensor) -> Any:
    """What `half` gives for `x` in evaluation mode; every module is in its own mode again afterwards."""
    modes = [(module, module.training) for module in half.modules()]
    try:
        return half.eval()(x)
    finally:
        for module, training in modes:
            module.training = training
