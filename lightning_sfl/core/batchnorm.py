"""The one-row rule: batch normalisation that would see a single value per channel uses its running statistics instead.

It holds for either half and for the uncut model alike, and leaves the buffers alone. Were it applied to the server
half only, SFL-V1 and FedAvg would differ by several hundredths whenever a trailing batch has one row.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def _use_running_statistics(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    batch: Tensor = inputs[0]
    single = batch.numel() == batch.shape[1]
    module._sfl_was_training = module.training  # type: ignore[assignment]
    if module.training and single and module.running_mean is not None:
        module.training = False


def _back_to_training(module: nn.Module, inputs: Any, output: Any) -> None:
    module.training = bool(module._sfl_was_training)


def apply_one_row_rule(module: nn.Module) -> None:
    """Install the rule on every batch-norm layer of `module`; deep copies inherit it."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_pre_hook(_use_running_statistics)
            layer.register_forward_hook(_back_to_training)
