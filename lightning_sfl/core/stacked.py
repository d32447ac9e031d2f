"""Copies of one network of ordinary layers, run in one stroke: grouped convolutions and batched products.

Small networks cost little but calls, and one call for all copies is cheaper than a call for each. The numbers are those
of the copies run one by one, up to rounding. Two layouts alternate: wide, (rows, copies * channels, height, width), for
convolutions and pooling; deep, (copies, rows, features), for dense layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

Weights = dict[str, Tensor]
Rule = Callable[[nn.Module, Weights, Tensor, int], Tensor]


def _alone(layer: nn.Module, weights: Weights, x: Tensor, copies: int) -> Tensor:
    out: Tensor = layer(x)
    return out


def _conv2d(layer: nn.Conv2d, weights: Weights, x: Tensor, copies: int) -> Tensor:
    bias = weights["bias"].flatten() if "bias" in weights else None
    kernels = weights["weight"].flatten(0, 1)
    return functional.conv2d(x, kernels, bias, layer.stride, layer.padding, layer.dilation, copies * layer.groups)


def _group_norm(layer: nn.GroupNorm, weights: Weights, x: Tensor, copies: int) -> Tensor:
    scale, shift = (weights[name].flatten() if name in weights else None for name in ("weight", "bias"))
    return functional.group_norm(x, copies * layer.num_groups, scale, shift, layer.eps)


def _linear(layer: nn.Linear, weights: Weights, x: Tensor, copies: int) -> Tensor:
    matrices = weights["weight"].transpose(1, 2)
    return torch.baddbmm(weights["bias"].unsqueeze(1), x, matrices) if "bias" in weights else torch.bmm(x, matrices)


def _flatten(layer: nn.Flatten, weights: Weights, x: Tensor, copies: int) -> Tensor:
    return x.reshape(len(x), copies, -1).transpose(0, 1) if x.dim() == 4 else x


# What each kind of layer becomes, and the dimensions of its input: 4 is wide, 3 is deep.
RULES: dict[type[nn.Module], tuple[Rule, tuple[int, ...]]] = {
    nn.Conv2d: (_conv2d, (4,)),  # type: ignore[dict-item]
    nn.GroupNorm: (_group_norm, (4,)),  # type: ignore[dict-item]
    nn.Linear: (_linear, (3,)),  # type: ignore[dict-item]
    nn.Flatten: (_flatten, (3, 4)),  # type: ignore[dict-item]
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), (_alone, (4,))),
    **dict.fromkeys((nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU), (_alone, (3, 4))),
    **dict.fromkeys((nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh), (_alone, (3, 4))),
}


def layers_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers of nested `nn.Sequential`s in the order they run, each with the prefix of its parameters' names."""
    if type(module).forward is nn.Sequential.forward:
        for name, child in module._modules.items():  # a layer that stands in it twice runs twice
            yield from layers_of(child, f"{prefix}{name}.")  # type: ignore[arg-type]
    else:
        yield prefix, module


def why_not(module: nn.Module, example: Tensor | tuple[Tensor, ...]) -> str | None:
    """What keeps copies of this module from running stacked on inputs like `example`, or None."""
    if not isinstance(example, Tensor) or example.dim() not in (2, 4):
        return "its input is not (rows, features) or (rows, channels, height, width)"
    dims = 3 if example.dim() == 2 else 4
    for prefix, layer in layers_of(module):
        rule = RULES.get(type(layer))
        if rule is None or dims not in rule[1] or getattr(layer, "padding_mode", "zeros") != "zeros":
            return f"{prefix.removesuffix('.') or 'the module'} is {type(layer).__name__}"
        if isinstance(layer, nn.Flatten):
            if (layer.start_dim, layer.end_dim) != (1, -1):
                return f"{prefix.removesuffix('.')} does not flatten whole rows"
            dims = 3
    return None


class Stacked:
    """Runs copies of `module`, whose layers all have a rule (see `why_not`)."""

    def __init__(self, module: nn.Module) -> None:
        self.layers = [
            (RULES[type(layer)][0], layer, {name: prefix + name for name, _ in layer.named_parameters()})
            for prefix, layer in layers_of(module)
        ]
        self.names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
        self.owned: dict[nn.Module, list[nn.Parameter]] = {}

    def forward(self, copies: Sequence[nn.Module], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of copies[i] on inputs[i] (rows_i, ...); a backward pass fills the copies' own `.grad`.

        Short inputs are filled up with zero rows, which no layer with a rule mixes with others.
        """
        leaves = dict(zip(self.names, map(_leaf, zip(*map(self.parameters_of, copies), strict=True)), strict=True))
        x = _together(inputs)
        for rule, layer, names in self.layers:
            x = rule(layer, {name: leaves[full] for name, full in names.items()}, x, len(copies))
        if x.dim() == 4:
            x = x.unflatten(1, (len(copies), -1)).transpose(0, 1)
        return [out if len(out) == len(own) else out[: len(own)] for out, own in zip(x.unbind(0), inputs, strict=True)]

    def parameters_of(self, copy: nn.Module) -> list[nn.Parameter]:
        """The copy's parameters in the order of `names`, looked up once."""
        if copy not in self.owned:
            self.owned[copy] = [parameter for _, parameter in copy.named_parameters(remove_duplicate=False)]
        return self.owned[copy]


def _leaf(owners: Sequence[nn.Parameter]) -> Tensor:
    """One parameter of all copies, as a leaf that hands its gradient on to them."""
    leaf = torch.stack([owner.detach() for owner in owners])
    if owners[0].requires_grad:
        leaf.requires_grad_().register_post_accumulate_grad_hook(partial(_hand_out, owners))
    return leaf


def _hand_out(owners: Sequence[nn.Parameter], leaf: Tensor) -> None:
    for owner, gradient in zip(owners, leaf.grad.unbind(0), strict=True):  # type: ignore[union-attr]
        owner.grad = gradient if owner.grad is None else owner.grad + gradient


def _together(inputs: Sequence[Tensor]) -> Tensor:
    """Inputs (rows_i, ...) as one tensor, (rows, copies * channels, ...) or (copies, rows, features)."""
    rows = max(map(len, inputs))
    full = [x if len(x) == rows else torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])]) for x in inputs]
    if full[0].dim() == 2:
        return torch.stack(full)
    return torch.cat(full, 1).contiguous(memory_format=torch.channels_last)  # pooling is many times faster so
