"""Scalars without a backward pass equal those with one: invariant 11."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sfl.backbones import MLP, CausalTransformer, CharLSTM, DigitsCNN
from lightning_sfl.core.holograd.directions import Directions
from lightning_sfl.core.holograd.projection import Projection, flat, project_loss, run_at, unflat
from tests.holograd.made import commitment


class Tied(nn.Module):
    """The embedding is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids).tanh() @ self.embed.weight.T


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(64, (16,)),
    "group norm": lambda: DigitsCNN(norm="group"),
    "batch norm": lambda: DigitsCNN(norm="batch"),
    "attention": lambda: CausalTransformer(11, context=6, width=8, heads=2, layers=1),
    "lstm": lambda: CharLSTM(11, embedding=4, hidden=8, layers=1),
    "tied": Tied,
}


def loss_of(net: nn.Module) -> tuple[Callable[[Sequence[Tensor]], Tensor], list[Tensor]]:
    """The loss as a function of the parameters; buffers are cloned, so that no call leaves a trace."""
    draw = torch.Generator().manual_seed(0)
    symbols = not isinstance(next(iter(net.modules())), (MLP, DigitsCNN))
    x = torch.randint(0, 11, (5, 6), generator=draw) if symbols else torch.rand(5, 1, 8, 8, generator=draw)
    y = torch.randint(0, 10, (5, 6) if symbols else (5,), generator=draw)

    def loss(values: Sequence[Tensor]) -> Tensor:
        logits = run_at(net, values, x)
        return cross_entropy(logits.flatten(0, -2), y.flatten())

    return loss, list(net.parameters())


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    return NETS[request.param]()


def scalars(net: nn.Module, way: Projection, basis_rows: int = 1) -> Tensor:
    loss, parameters = loss_of(net)
    size = sum(p.numel() for p in parameters)
    basis = torch.zeros(basis_rows, size)
    basis[:, 0] = 1
    return project_loss(loss, parameters, Directions(commitment().seeds(0, 20), basis), way)


def test_forward_mode_is_the_gradients_product(net: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    exact, forward = scalars(net, "grad"), scalars(net, "jvp")
    assert exact.shape == forward.shape == (21,)
    size = exact[1:].square().mean().sqrt()
    assert (forward - exact).abs().max() < 1e-5 * size
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_differences_are_roughly_right_in_double_and_not_good_enough_in_single() -> None:
    torch.manual_seed(3)
    net = MLP(64, (16,))
    exact, single = scalars(net, "grad", 0), scalars(net, "fd", 0)
    size = exact.square().mean().sqrt()
    assert 1e-4 * size < (single - exact).abs().max() < size


def test_flat_and_back() -> None:
    tensors = [torch.arange(6.0).view(2, 3), torch.zeros(()), torch.arange(4.0)]
    vector = flat([tensors[0], None, tensors[2]], tensors)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 1, 2, 3]
    assert [piece.shape for piece in unflat(vector, tensors)] == [tensor.shape for tensor in tensors]
    assert torch.equal(unflat(vector, tensors)[0], tensors[0])
