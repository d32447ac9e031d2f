"""The cut on awkward models: which way is taken, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.split import cuts, split
from tests.core.awkward import Net, branch_on_data, net, straight, train_alike, x_of


def rows_from_the_input(net: Net, x: Tensor) -> Tensor:
    rows, (also, _) = x.shape[0], x.size()
    return net.back(net.front(x).reshape(rows, -1)).view(also, 2, 2)


def width_from_the_input(net: Net, x: Tensor) -> Tensor:
    width = x.shape[1]
    return net.back(net.front(x).reshape(-1, width))


def in_place_behind(net: Net, x: Tensor) -> Tensor:
    return net.back(net.front(x).relu_())


def statement_in_place(net: Net, x: Tensor) -> Tensor:
    z = net.front(x)
    z.mul_(2.0)
    return net.back(z)


def shared_relu(net: Net, x: Tensor) -> Tensor:
    return net.back(net.relu(net.b(net.relu(net.norm_a(net.a(x))))))


def functional_mode(net: Net, x: Tensor) -> Tensor:
    z = net.front(functional.dropout(x, 0.0, net.training))
    return net.back(z if net.training else z * 1.0)


def skip(net: Net, x: Tensor) -> Tensor:
    h = net.norm_a(net.a(x))
    return net.back(net.b(h) + h)


def input_behind(net: Net, x: Tensor) -> Tensor:
    return net.back(net.front(x)) * x


def mask_behind(net: Net, x: Tensor) -> Tensor:
    return net.back(net.front(x)) * (x > 0)


def twice(net: Net, x: Tensor) -> Tensor:
    return net.back(net.b(net.front(x)))


def same_weight(net: Net, x: Tensor) -> Tensor:
    return functional.linear(net.back(net.front(x)), net.a.weight)


def shared_norm(net: Net, x: Tensor) -> Tensor:
    return net.c(net.norm_d(net.b(net.norm_d(net.a(x)))))


def merged_rows(net: Net, x: Tensor) -> Tensor:
    z = net.b(net.a(x).reshape(-1, 2, 2).transpose(0, 1).reshape(-1, 4).repeat(2, 1))
    return net.c(z[: x.shape[0]])


@pytest.mark.parametrize(
    ("flow", "way"),
    [
        (straight, "fx"),
        (rows_from_the_input, "fx"),
        (in_place_behind, "fx"),
        (shared_relu, "fx"),
        (width_from_the_input, "hook"),
        (branch_on_data, "hook"),
        (statement_in_place, "hook"),
        (functional_mode, "hook"),
    ],
)
def test_the_way_taken_and_its_gradients(flow: Callable[[Net, Tensor], Tensor], way: str) -> None:
    model = net(flow)
    cut = split(model, "b", x_of())
    assert cut.certificate.way == way
    train_alike(model, cut, x_of(5))
    for module in (model, cut.client_half, cut.server_half):
        module.eval()
    for rows in (1, 3):
        assert torch.equal(cut.server_half(cut.client_half(x_of(rows))), model(x_of(rows)))


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        (skip, "skip connection"),
        (input_behind, "the raw input is needed behind it"),
        (mask_behind, "the raw input is needed behind it"),
        (twice, "it is called 2 times"),
        (same_weight, "tied weights lie on both sides (a.weight)"),
        (shared_norm, "norm_d keeps buffers and is called on both sides"),
        (merged_rows, "does not have the samples as its first dimension"),
        (lambda n, x: n.c(x) + 0 * n.norm_a(x), "it is not called in forward"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_its_reason(flow: Callable[[Net, Tensor], Tensor], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split(net(flow), "b", x_of())
    assert words in str(caught.value), str(caught.value)
    assert dict(cuts(net(flow), x_of()).refused)["b"] in str(caught.value)


def test_raw_input_behind_is_found_without_a_trace() -> None:
    def untraceable(n: Net, x: Tensor) -> Tensor:
        return mask_behind(n, x) if bool(x.isfinite().all()) else x

    with pytest.raises(ConfigError, match="the raw input"):
        split(net(untraceable), "b", x_of())


def test_an_example_of_zeros_does_not_hide_that_the_input_is_needed() -> None:
    def untraceable(n: Net, x: Tensor) -> Tensor:
        z = n.back(n.front(x))
        return z + (x > 0.5) if bool(x.isfinite().all()) else z

    with pytest.raises(ConfigError, match="the raw input"):
        split(net(untraceable), "b", torch.zeros_like(x_of()))


def test_tied_modules_are_refused_by_both_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(ConfigError, match=r"tied weights lie on both sides \(0.weight, 2.weight\)"):
        split(model, "1", torch.randn(2, 4))
