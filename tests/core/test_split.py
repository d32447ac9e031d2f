"""The cut on the backbones: every valid cut trains exactly as the uncut model, in any mode, with any batch size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_sfl.backbones import MLP, CausalTransformer, CharLSTM, DigitsCNN, FedAvgCNN, LeNet5, ResNet18
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.split import Split, cuts, split

CASES = {
    "mlp": (MLP(12, (7, 5), 3), (12,), 0),
    "fedavg_cnn": (FedAvgCNN(1, 8, 3), (1, 8, 8), 0),
    "digits": (DigitsCNN(3), (1, 8, 8), 0),
    "digits_batch": (DigitsCNN(3, norm="batch"), (1, 8, 8), 0),
    "lenet": (LeNet5(1, 20, 3), (1, 20, 20), 0),
    "resnet_batch": (ResNet18(3, width=8), (3, 8, 8), 0),
    "resnet_group": (ResNet18(3, width=8, norm="group"), (3, 8, 8), 0),
    "lstm": (CharLSTM(7, 4, 6), (5,), 7),
    "transformer": (CausalTransformer(7, 8, 8, 2), (5,), 7),
}


def batch(shape: tuple[int, ...], vocab: int, rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if vocab:
        return torch.randint(vocab, (rows, *shape), generator=generator)
    return torch.randn((rows, *shape), generator=generator, dtype=torch.float64)


def through_the_cut(cut: Split, x: Tensor) -> Tensor:
    """Forward and backward as a method does it: detached leaf, clone to the server, gradient back to the client."""
    smashed = cut.client_half(x)
    received = smashed.detach().requires_grad_()
    outputs = cut.server_half(received.clone())
    outputs.square().sum().backward()
    smashed.backward(received.grad)
    return outputs


def assert_trains_alike(model: nn.Module, cut: Split, x: Tensor) -> None:
    model.zero_grad()
    outputs = model(x)
    outputs.square().sum().backward()
    torch.testing.assert_close(through_the_cut(cut, x), outputs, rtol=1e-12, atol=1e-12)
    halves = {**dict(cut.client_half.named_parameters()), **dict(cut.server_half.named_parameters())}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(halves[name].grad, parameter.grad, rtol=1e-12, atol=1e-12, msg=name)
    buffers = {**dict(cut.client_half.named_buffers()), **dict(cut.server_half.named_buffers())}
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_valid_cut_trains_exactly_as_the_whole_model(case: str) -> None:
    template, shape, vocab = CASES[case]
    model = copy.deepcopy(template).double()
    x = batch(shape, vocab, 4)
    listing = cuts(model, x)
    assert len(listing.valid) >= 3
    for row in listing.valid:
        whole = copy.deepcopy(model)
        cut = split(whole, row.name, x)
        keys = [*cut.client_half.state_dict(), *cut.server_half.state_dict()]
        assert sorted(keys) == sorted(model.state_dict()), row.name
        for rows in (4, 3):
            assert_trains_alike(whole, cut, batch(shape, vocab, rows, seed=rows))
            cut.client_half.zero_grad()
            cut.server_half.zero_grad()
        for module in (whole, cut.client_half, cut.server_half):
            module.eval()
        one = batch(shape, vocab, 1, seed=9)
        assert torch.equal(cut.server_half(cut.client_half(one)), whole(one)), row.name


def test_chains_are_cut_by_slicing() -> None:
    for case, name in [("mlp", "fc1"), ("digits", "pool"), ("resnet_batch", "layer2.0"), ("lstm", "lstm1")]:
        model, shape, vocab = CASES[case]
        x = batch(shape, vocab, 2)
        assert split(model, name, x if vocab else x.float()).certificate.way == "slice"
    model, shape, vocab = CASES["transformer"]
    ways = {row.name: row.way for row in cuts(model, batch(shape, vocab, 2)).valid}
    assert [ways[name] for name in ("tok", "blocks.0", "norm")] == ["slice"] * 3


def test_text_halves_take_other_lengths() -> None:
    for case, name in (("lstm", "lstm1"), ("transformer", "blocks.0")):
        model, _, vocab = CASES[case]
        cut = split(model, name, batch((5,), vocab, 2))
        longer = batch((8,), vocab, 3)
        torch.testing.assert_close(cut.server_half(cut.client_half(longer)), model(longer))


def test_dropout_follows_the_mode_and_is_drawn_on_its_own_side() -> None:
    model = DigitsCNN(3, dropout=0.5)
    x = torch.randn(6, 1, 8, 8)
    cut = split(model, "relu3", x)
    state = torch.get_rng_state()
    whole = model(x)
    torch.set_rng_state(state)
    assert torch.equal(cut.server_half(cut.client_half(x)), whole)
    assert not torch.equal(cut.server_half(cut.client_half(x)), whole)
    assert torch.equal(cut.server_half.eval()(cut.client_half.eval()(x)), model.eval()(x))


def test_the_certificate_counts_and_says_it_in_one_line() -> None:
    certificate = split(DigitsCNN(), "pool", torch.randn(2, 1, 8, 8)).certificate
    assert certificate.smashed_shapes == ((32, 4, 4),)
    assert certificate.bytes_per_sample == 32 * 4 * 4 * 4
    assert (certificate.client_parameters, certificate.server_parameters) == (4_800, 33_482)
    assert certificate.outputs_match == "bitwise"
    assert certificate.describe() == (
        "cut pool: client 4,800 params, server 33,482 params, smashed 32x4x4 (2.0 KiB/sample) by slice "
        "[checked: outputs and gradients match]"
    )


def test_splitting_disturbs_neither_model_nor_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []  # cards, which may be other processes' or not even initialised
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    model = DigitsCNN(dropout=0.3, norm="batch")
    model.norm1.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        cut = split(model, "relu1", torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert seeded == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert (model.training, model.norm1.training) == (True, False)
    assert not model.norm1._forward_hooks
    assert (cut.client_half.training, cut.client_half.norm1.training) == (True, False)
    assert cut.server_half.norm2.training
    assert all(p.grad is None for half in (cut.client_half, cut.server_half) for p in half.parameters())


def test_halves_and_their_copies_are_independent() -> None:
    model = DigitsCNN()
    x = torch.randn(2, 1, 8, 8)
    cut = split(model, "pool", x)
    slot = copy.deepcopy(cut.client_half)
    before = cut.client_half(x)
    with torch.no_grad():
        for module in (model, slot):
            for parameter in module.parameters():
                parameter.zero_()
    assert torch.equal(cut.client_half(x), before)
    assert not slot(x).any()


def test_the_listing_of_resnet_names_every_module_once_and_agrees_with_split() -> None:
    model, x = ResNet18(width=8), torch.randn(2, 3, 8, 8)
    listing = cuts(model, x)
    names = [row.name for row in listing.valid] + [name for name, _ in listing.refused]
    assert sorted(names) == sorted(name for name, _ in model.named_modules() if name)
    stages = ["conv1", "bn1", "relu", "layer1.0", "layer1.1", "layer1", "layer2.0", "layer2.1", "layer2", "layer3.0"]
    assert [row.name for row in listing.valid][:10] == stages
    for name, reason in listing.refused[::7]:
        with pytest.raises(ConfigError) as caught:
            split(model, name, x)
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layer1.0.conv1", ["skip connection", "; nearest valid cuts: layer1.0, layer1"]),
        ("layer1.0.relu", ["called 2 times", "layer1.0"]),
        ("layer9", ["no module of that name", "layer4"]),
        ("", ["no module of that name", "nearest valid cuts: conv1"]),
        ("fc", ["no trainable parameter lies behind it", "nearest valid cuts: flatten, avgpool"]),
    ],
)
def test_refusals_are_one_line_that_names_the_nearest_cuts(name: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        split(ResNet18(width=8), name, torch.randn(2, 3, 8, 8))
    text = str(caught.value)
    assert text.startswith(f"cut_layer={name!r} is not allowed: ")
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_data_that_does_not_fit_the_model_is_one_line_too() -> None:
    with pytest.raises(ConfigError, match="does not take the data: an input of 2x1x8x8 raises"):
        split(ResNet18(width=8), "layer1", torch.randn(2, 1, 8, 8))
    with pytest.raises(ConfigError, match="at least 2 rows"):
        split(DigitsCNN(), "pool", torch.randn(1, 1, 8, 8))
