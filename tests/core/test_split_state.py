"""What of a cut network's state lies where: buffers, copies, frozen parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.split import split
from tests.core.awkward import Net, branch_on_data, net, straight, train_alike, x_of


class Extras(Net):
    """State that no forward touches, a constant buffer used on both sides, and one that is not saved."""

    def __init__(self, traceable: bool) -> None:
        super().__init__(lambda n, x: n.use(x))
        self.traceable = traceable
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0]))
        self.register_buffer("hidden", torch.full((4,), 2.0), persistent=False)

    def use(self, x: Tensor) -> Tensor:
        z = self.front(x * self.mask + self.hidden)
        if not self.traceable and z.sum() > 1e9:
            z = -z
        return self.back(z * self.mask * self.scale)


@pytest.mark.parametrize(("traceable", "way"), [(True, "fx"), (False, "hook")])
def test_every_state_key_is_on_exactly_one_side(traceable: bool, way: str) -> None:
    model = Extras(traceable).double()
    cut = split(model, "b", x_of())
    assert cut.certificate.way == way
    client, server = cut.client_half.state_dict(), cut.server_half.state_dict()
    assert not client.keys() & server.keys()
    assert {"a.weight", "norm_a.running_mean", "b.bias"} <= client.keys()
    assert {"scale", "mask", "c.weight"} <= server.keys()
    train_alike(model, cut, x_of(6))
    state = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in client.items()}
    cut.client_half.load_state_dict(state)
    assert torch.equal(cut.client_half.a.weight, state["a.weight"])


@pytest.mark.parametrize("flow", [straight, branch_on_data])
def test_copies_of_a_client_half_are_independent(flow: Callable[[Net, Tensor], Tensor]) -> None:
    cut = split(net(flow), "b", x_of())
    slots = [copy.deepcopy(cut.client_half).eval() for _ in range(2)]
    with torch.no_grad():
        for parameter in slots[0].parameters():
            parameter.zero_()
    assert not slots[0](x_of()).any()
    assert torch.equal(slots[1](x_of()), cut.client_half.eval()(x_of()))


def test_the_hook_server_trains_and_keeps_nothing_of_the_front() -> None:
    def dropped(n: Net, x: Tensor) -> Tensor:
        z = n.front(functional.dropout(n.dropout(x), 0.5, n.training))
        return n.back(functional.dropout(z, 0.5, n.training))

    model = net(dropped)
    cut = split(model, "b", x_of())
    assert cut.certificate.way == "hook"
    assert {name.split(".")[0] for name, _ in cut.server_half.named_parameters()} == {"norm_c", "c"}
    front = cut.server_half.norm_a.running_var.clone()
    z = torch.randn(4, 4, dtype=torch.float64)
    torch.manual_seed(3)
    own = cut.server_half(z)
    torch.manual_seed(3)
    expected = model.back(functional.dropout(z, 0.5))
    assert torch.equal(own, expected)  # the front's dropout drew nothing
    assert torch.equal(cut.server_half.norm_a.running_var, front)
    assert own.requires_grad
    assert torch.is_grad_enabled()
    half = copy.deepcopy(cut.server_half).float()
    assert half(z.float()).dtype == torch.float32


def test_frozen_parameters_stay_frozen_and_may_not_be_all_of_a_side() -> None:
    model = net(straight)
    model.a.requires_grad_(False)
    cut = split(model, "b", x_of())
    assert not cut.client_half.a.weight.requires_grad
    assert cut.client_half.b.weight.requires_grad
    for module in (model.norm_a, model.b):
        module.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter lies before it"):
        split(model, "b", x_of())
