"""Backbones: the sizes known from the papers, shapes, refusals of bad arguments, and causality of the transformer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_sfl.backbones import MLP, CausalTransformer, CharLSTM, DigitsCNN, FedAvgCNN, LeNet5, ResNet18


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (MLP(), 199_210),
        (FedAvgCNN(), 1_663_370),
        (DigitsCNN(), 38_282),
        (LeNet5(), 62_006),
        (ResNet18(), 11_173_962),
        (CharLSTM(80), 819_920),
        # 65 tokens and 64 positions, two blocks of 12 w^2 + 13 w, a norm, an untied head without bias
        (CausalTransformer(65), (65 + 64) * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64 + 65 * 64),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_parameter_counts(model: nn.Module, expected: int) -> None:
    assert size(model) == expected


def test_digits_cnn_holds_4800_parameters_up_to_pool() -> None:
    model = DigitsCNN()
    assert size(model.conv1) + size(model.conv2) == 4_800
    assert model.pool(torch.zeros(1, 32, 8, 8)).shape == (1, 32, 4, 4)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (MLP(64, (8,)), torch.randn(3, 1, 8, 8)),
        (MLP(64, ()), torch.randn(3, 1, 8, 8)),
        (FedAvgCNN(3, 8), torch.randn(3, 3, 8, 8)),
        (DigitsCNN(norm="batch", dropout=0.5), torch.randn(3, 1, 8, 8)),
        (DigitsCNN(norm="group"), torch.randn(3, 1, 8, 8)),
        (LeNet5(1, 28), torch.randn(3, 1, 28, 28)),
        (ResNet18(width=8, norm="group"), torch.randn(3, 3, 16, 16)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_images_give_one_row_of_logits_each(model: nn.Module, x: torch.Tensor) -> None:
    assert model(x).shape == (3, 10)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize("model", [CharLSTM(11, hidden=5), CausalTransformer(11, context=9, width=8, heads=2)])
def test_text_models_predict_every_position_from_the_past_alone(model: nn.Module) -> None:
    ids = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    before, after = model.eval()(ids), model(changed)
    assert before.shape == (2, 9, 11)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])
    assert model(ids[:, :4]).shape == (2, 4, 11)


def test_option_names_never_move_the_other_stages() -> None:
    plain = [name for name, _ in DigitsCNN().named_children()]
    full = [name for name, _ in DigitsCNN(dropout=0.1, norm="batch").named_children()]
    assert [name for name in full if name in plain] == plain
    assert set(full) - set(plain) == {"norm1", "norm2", "dropout1", "dropout2"}


def test_resnet_uses_the_names_of_torchvision() -> None:
    keys = set(ResNet18(width=8).state_dict())
    expected = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"}
    assert expected | {"layer2.0.downsample.1.num_batches_tracked", "layer4.1.bn2.bias", "fc.weight", "fc.bias"} <= keys
    assert len(keys) == 122
    assert not any("running" in key for key in ResNet18(width=8, norm="group").state_dict())


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: MLP(hidden=(5, 0)), "hidden=0"),
        (lambda: MLP(num_classes=True), "num_classes=True"),
        (lambda: FedAvgCNN(image_size=3), "image_size=3"),
        (lambda: DigitsCNN(dropout=float("nan")), "dropout=nan"),
        (lambda: DigitsCNN(norm="layer"), "norm='layer'"),  # type: ignore[arg-type]
        (lambda: LeNet5(image_size=15), "image_size=15"),
        (lambda: ResNet18(width=-1), "width=-1"),
        (lambda: CharLSTM(0), "vocab_size=0"),
        (lambda: CausalTransformer(5, width=10, heads=4), "heads=4"),
        (lambda: CausalTransformer(5, context=4)(torch.zeros(1, 5, dtype=torch.int64)), "length=5"),
    ],
)
def test_bad_arguments_give_one_clear_line(make, key: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="is not allowed") as caught:
        make()
    assert str(caught.value).startswith(key)
    assert "\n" not in str(caught.value)
