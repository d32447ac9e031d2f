"""States: live views by name, copied in place."""

from __future__ import annotations

import torch
from torch import nn

from lightning_sfl.core.state import buffers_of, copy_state, gradients_of, load_state, num_parameters, state_of


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_a_state_is_live_and_without_graph() -> None:
    module = net()
    state = state_of(module)
    assert set(state) == set(module.state_dict())
    assert not any(tensor.requires_grad for tensor in state.values())
    with torch.no_grad():
        module[0].weight.fill_(7)
    assert bool((state["0.weight"] == 7).all())


def test_copying_keeps_the_targets_tensors() -> None:
    source, target = net(), net()
    source(torch.randn(5, 3))
    kept = [(id(p), p.data_ptr()) for p in target.parameters()]
    copy_state(source, target)
    assert [(id(p), p.data_ptr()) for p in target.parameters()] == kept
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())
    assert target[1].num_batches_tracked.item() == 1
    assert all(p.requires_grad for p in target.parameters())
    with torch.no_grad():
        source[0].weight.fill_(7)
    assert not bool((target[0].weight == 7).any())


def test_a_partial_state_leaves_the_rest() -> None:
    module = net()
    bias = module[0].bias.detach().clone()
    load_state(module, {"0.weight": torch.ones(2, 3)})
    assert bool((module[0].weight == 1).all())
    assert torch.equal(module[0].bias, bias)


def test_parameters_buffers_and_gradients() -> None:
    module = net()
    module[0].bias.requires_grad_(False)
    assert num_parameters(module) == 6 + 4
    assert set(buffers_of(module)) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert gradients_of(module) == {}
    module[0](torch.ones(1, 3)).sum().backward()
    assert set(gradients_of(module)) == {"0.weight"}


def test_tied_weights_are_no_buffers() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    assert buffers_of(module) == {}
    assert num_parameters(module) == 4 + 4
