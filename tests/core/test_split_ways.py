"""The cut on awkward models: which way is taken, what crosses, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_sfl.core.errors import ConfigError, DataError
from lightning_sfl.core.split import Split, cuts, split
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


def rows_from_the_input(net: Net, x: Tensor) -> Tensor:
    rows, (also, _) = x.shape[0], x.size()
    return net.back(net.front(x).reshape(rows, -1)).view(also, 2, 2)


def width_from_the_input(net: Net, x: Tensor) -> Tensor:
    width = x.shape[1]
    return net.back(net.front(x).reshape(-1, width))


def branch_on_data(net: Net, x: Tensor) -> Tensor:
    z = net.front(x)
    return net.back(z) if z.sum() > 0 else net.back(-z)


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


class Pair(nn.Module):
    """Returns two tensors in a nested structure, and one that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.unread = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.one(x), {"unread": self.unread(x), "two": self.two(x)}


class Joined(nn.Module):
    """Two paths across the cut `pair`."""

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.traceable = traceable
        self.pair, self.head = Pair(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, rest = self.pair(x)
        if not self.traceable and one.sum() > 1e9:
            one = one * 2
        return self.head(torch.cat([one, rest["two"]], dim=1)) + 0 * rest["two"].sum()


class Unpacks(nn.Module):
    """Takes a tuple as its one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(torch.cat(pair, dim=1))


class Flat(nn.Module):
    """Returns a flat tuple of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(x)


@pytest.mark.parametrize(
    ("make", "cut_layer", "way"),
    [
        (lambda: nn.Sequential(Flat(), Unpacks()), "0", "slice"),
        (lambda: Joined(True), "pair", "fx"),
        (lambda: Joined(False), "pair", "hook"),
    ],
)
def test_a_tuple_is_carried_as_one_flat_tuple(make: Callable[[], nn.Module], cut_layer: str, way: str) -> None:
    model = make().double()
    cut = split(model, cut_layer, x_of())
    assert cut.certificate.way == way
    assert cut.certificate.smashed_shapes == ((3,), (2,))
    assert cut.certificate.bytes_per_sample == 5 * 8
    smashed = cut.client_half(x_of())
    assert isinstance(smashed, tuple)
    assert len(smashed) == 2
    # `unread` reaches no output: it has no gradient in the whole model either
    train_alike(model, cut, x_of(3))


class Reader(nn.Module):
    """torch's own LSTM, whose output is the nested tuple (sequence, (hidden, cell))."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(5, 3), nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.lstm(self.embed(ids))
        return self.head(out)


def test_of_an_lstm_only_the_sequence_crosses() -> None:
    model = Reader().double()
    ids = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))
    cut = split(model, "lstm", ids)
    assert isinstance(cut.client_half(ids), Tensor)
    assert cut.certificate.smashed_shapes == ((6, 4),)
    train_alike(model, cut, ids[:2, :4])


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


def test_the_hook_server_says_when_sizes_do_not_fit() -> None:
    class Untraceable(Reader):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids if int(ids.max()) >= 0 else ids + 1)

    ids = torch.randint(5, (3, 6))
    cut = split(Untraceable(), "lstm", ids)
    assert cut.certificate.way == "hook"
    with pytest.raises(DataError, match=r"made for inputs of \(6,\)"):
        cut.server_half(cut.client_half(ids[:, :4]))


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
