"""Gradients at the state that two halves are in, taken without leaving a trace in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_sfl.core.population import Population
from lightning_sfl.core.randomness import untouched_generators

BnMode = Literal["running", "batch"]
Loss = Callable[[Tensor, Tensor], Tensor]
ROWS_AT_ONCE = 512


def mean_gradient(
    loss: Loss,
    halves: Sequence[nn.Module],
    population: Population,
    rows: np.ndarray,
    over: Sequence[nn.Parameter],
    rows_at_once: int = ROWS_AT_ONCE,
) -> list[Tensor]:
    """Gradient of the mean loss on these rows, one tensor per parameter in `over`, zeros where it has none.

    loss: mean over rows, of (logits, labels); halves: run one after the other. No `.grad` is touched.
    """
    total: list[Tensor] = []
    for start in range(0, len(rows), rows_at_once):
        part = rows[start : start + rows_at_once]
        x, labels = population.take(part)
        with torch.enable_grad():
            for half in halves:
                x = half(x)
            found = torch.autograd.grad(loss(x, labels.to(x.device)), over, allow_unused=True) if over else ()
        whole = [torch.zeros_like(p) if g is None else g for p, g in zip(over, found, strict=True)]
        shares = [gradient * (len(part) / len(rows)) for gradient in whole] if rows_at_once < len(rows) else whole
        total = [old + new for old, new in zip(total, shares, strict=True)] if total else shares
    return total


@contextmanager
def untouched(halves: Sequence[nn.Module], bn_mode: BnMode, device: torch.device) -> Iterator[None]:
    """Both halves in evaluation mode (batch statistics on request) and full precision; afterwards all is as it was.

    That is buffers, the mode of every module, and torch's generators.
    """
    modules = [module for half in halves for module in half.modules()]
    modes = [module.training for module in modules]
    devices = {device, *(parameter.device for half in halves for parameter in half.parameters())}
    buffers = [b for half in halves for b in half.buffers()]
    before = [buffer.clone() for buffer in buffers]
    recurrent = any(isinstance(module, nn.RNNBase) for module in modules)
    try:
        for module in modules:
            module.training = bn_mode == "batch" and isinstance(module, _NormBase)
        # cuDNN differentiates recurrent layers in training mode only
        cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
        with untouched_generators(*devices), torch.autocast(device.type, enabled=False), cudnn:
            yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def trained_parameters(half: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters, each distinct one once, in the half's order."""
    return [parameter for parameter in half.parameters() if parameter.requires_grad]
