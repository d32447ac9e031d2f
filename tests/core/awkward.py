"""Networks that are awkward to cut, and that a cut one trains like the whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_sfl.core.split import Split
from lightning_sfl.core.splitting.crossing import unpack


class Net(nn.Module):
    """Layers a, b, c of 4 units with a batch norm each side of the cut `b`; `flow` says how they are used."""

    def __init__(self, flow: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.norm_a, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.norm_c, self.c = nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.norm_d = nn.BatchNorm1d(4, affine=False)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.5)
        self.flow = flow

    def front(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.norm_a(self.a(x))))

    def back(self, z: Tensor) -> Tensor:
        return self.c(torch.tanh(self.norm_c(z)))

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(self, x)


def straight(net: Net, x: Tensor) -> Tensor:
    return net.back(net.front(x))


def branch_on_data(net: Net, x: Tensor) -> Tensor:
    z = net.front(x)
    return net.back(z) if z.sum() > 0 else net.back(-z)


def net(flow: Callable[[Net, Tensor], Tensor]) -> Net:
    torch.manual_seed(0)
    return Net(flow).double()


def x_of(rows: int = 4) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


def train_alike(model: nn.Module, cut: Split, x: Tensor) -> None:
    """One backward with and without the cut: outputs, gradients and buffers equal to 1e-12."""
    outputs = model(x)
    outputs.square().sum().backward()
    smashed = cut.client_half(x)
    received = [t.detach().requires_grad_() for t in unpack(smashed)]
    sent = [t.clone() for t in received]
    own = cut.server_half(sent[0] if isinstance(smashed, Tensor) else tuple(sent))
    own.square().sum().backward()
    torch.autograd.backward(unpack(smashed), [t.grad for t in received])
    torch.testing.assert_close(own, outputs, rtol=1e-12, atol=1e-12)
    halves = {**dict(cut.client_half.named_parameters()), **dict(cut.server_half.named_parameters())}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(halves[name].grad, parameter.grad, rtol=1e-12, atol=1e-12, msg=name)
    state = {**cut.client_half.state_dict(), **cut.server_half.state_dict()}
    assert state.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-12, atol=1e-12, msg=key)
