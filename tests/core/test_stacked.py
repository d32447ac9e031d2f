"""Copies run in one stroke give what they give one by one, outputs and gradients, and say where that cannot be had."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from lightning_sfl.core.stacked import RULES, Stacked, why_not


def wide(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *layers)


def twice(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, nn.ReLU(), layer)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False)),
    "one layer": lambda: nn.Linear(5, 3),
    "convolution": lambda: wide(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
    "wide to the end": lambda: wide(nn.LeakyReLU(), nn.AvgPool2d(2)),
    "grouped, strided, dilated": lambda: nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2, bias=False),
    "group norm": lambda: wide(
        nn.GroupNorm(2, 4), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.GroupNorm(2, 4, affine=False)
    ),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), nn.Sequential(nn.Flatten())),
    "same layer twice": lambda: twice(nn.Linear(5, 5)),
}


def inputs_of(network: nn.Module, sizes: Sequence[int]) -> list[Tensor]:
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    shape = (2, 6, 6) if isinstance(first, nn.Conv2d) else (5,)
    return [torch.randn(size, *shape, dtype=torch.float64) for size in sizes]


def copies_of(make: Callable[[], nn.Module], count: int) -> list[nn.Module]:
    torch.manual_seed(count)
    template = make().double()
    copies = [copy.deepcopy(template) for _ in range(count)]
    with torch.no_grad():
        for parameter in (p for each in copies for p in each.parameters()):
            parameter.normal_()
    return copies


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 5, 3), (2,)])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_each_copy_alone(name: str, sizes: tuple[int, ...]) -> None:
    stacked, alone = copies_of(NETWORKS[name], len(sizes)), copies_of(NETWORKS[name], len(sizes))
    inputs = inputs_of(stacked[0], sizes)
    assert why_not(stacked[0], inputs[0]) is None

    together = Stacked(stacked[0]).forward(stacked, inputs)
    apart = [network(x) for network, x in zip(alone, inputs, strict=True)]
    for one, other in zip(together, apart, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)

    weights = [torch.randn_like(out) for out in apart]
    torch.autograd.backward(together, weights)
    torch.autograd.backward(apart, weights)
    for one, other in zip(stacked, alone, strict=True):
        for (_, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-11)


def test_frozen_parameters_get_no_gradient() -> None:
    copies = copies_of(NETWORKS["dense"], 2)
    for network in copies:
        network[0].requires_grad_(False)  # type: ignore[index]
    torch.autograd.backward([out.sum() for out in Stacked(copies[0]).forward(copies, inputs_of(copies[0], (2, 3)))])
    assert all(p.grad is None for network in copies for p in network[0].parameters())  # type: ignore[index]
    assert all(p.grad is not None for network in copies for p in network[2].parameters())  # type: ignore[index]


class Odd(nn.Sequential):
    """A chain that does more than its layers say."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1  # type: ignore[no-any-return]


IMAGE, ROW = torch.zeros(2, 2, 6, 6), torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("network", "example", "named"),
    [
        (nn.Sequential(OrderedDict(fc=nn.Linear(5, 3), drop=nn.Dropout(0.5))), ROW, "drop is Dropout"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), IMAGE, "1 is BatchNorm2d"),
        (nn.Sequential(nn.Linear(6, 3)), IMAGE, "0 is Linear"),
        (nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")), IMAGE, "0 is Conv2d"),
        (nn.Sequential(nn.Flatten(2)), IMAGE, "0 does not flatten whole rows"),
        (Odd(nn.Linear(5, 3)), ROW, "the module is Odd"),
        (nn.Sequential(nn.Linear(5, 3)), (ROW, ROW), "its input is not"),
        (nn.Sequential(nn.Embedding(5, 3)), torch.zeros(2, 4, 5), "its input is not"),
    ],
)
def test_what_has_no_rule_is_named(network: nn.Module, example: Tensor, named: str) -> None:
    reason = why_not(network, example)
    assert reason is not None
    assert named in reason


def test_no_rule_is_for_a_layer_that_mixes_rows_or_draws() -> None:
    mixing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    assert not [kind for kind in RULES if issubclass(kind, mixing)]
