"""The one-row rule: a single value per channel is normalised by the running statistics, which stay as they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_sfl.core.batchnorm import apply_one_row_rule


def ruled(layer: nn.Module) -> nn.Module:
    layer.running_mean.fill_(2.0)
    layer.running_var.fill_(4.0)
    net = nn.Sequential(layer).train()
    apply_one_row_rule(net)
    return net


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3, eps=0), (1, 3)),
        (nn.BatchNorm1d(3, eps=0), (1, 3, 1)),
        (nn.BatchNorm2d(3, eps=0), (1, 3, 1, 1)),
        (nn.BatchNorm3d(3, eps=0), (1, 3, 1, 1, 1)),
    ],
)
def test_single_value(layer: nn.Module, shape: tuple[int, ...]) -> None:
    net = ruled(layer)
    assert bool((net(torch.full(shape, 8.0)) == 3).all())  # (8 - 2) / sqrt(4)
    assert layer.running_mean.tolist() == [2, 2, 2]
    assert layer.running_var.tolist() == [4, 4, 4]
    assert layer.num_batches_tracked.item() == 0
    assert layer.training


@pytest.mark.parametrize("shape", [(2, 3), (1, 3, 2)])
def test_several_values_train_as_ever(shape: tuple[int, ...]) -> None:
    net, plain = ruled(nn.BatchNorm1d(3)), nn.BatchNorm1d(3)
    plain.running_mean.fill_(2.0)
    plain.running_var.fill_(4.0)
    x = torch.randn(shape)
    assert torch.equal(net(x), plain(x))
    assert torch.equal(net[0].running_mean, plain.running_mean)  # type: ignore[index]
    assert net[0].num_batches_tracked.item() == 1  # type: ignore[index]


def test_copies_inherit_the_rule_and_evaluation_stays_evaluation() -> None:
    net = copy.deepcopy(ruled(nn.BatchNorm1d(3, eps=0)))
    assert net(torch.full((1, 3), 8.0)).tolist() == [[3, 3, 3]]
    net.eval()
    net(torch.ones(1, 3))
    assert not net[0].training  # type: ignore[index]


def test_gradients_flow_through_the_single_row() -> None:
    net = ruled(nn.BatchNorm1d(3, eps=0))
    x = torch.ones(1, 3, requires_grad=True)
    net(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.5, 0.5, 0.5]]
