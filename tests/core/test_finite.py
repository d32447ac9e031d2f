"""The guards: NaN and infinity are found, large finite numbers are not mistaken for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_sfl.core.finite import all_finite, clip

BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("where", [0, 17, 49])
def test_one_bad_entry_is_found(value: float, where: int) -> None:
    good = [torch.zeros(3), torch.full((2, 2), 1e30), torch.tensor(5.0), torch.zeros(0)]
    assert all_finite(good)
    bad = torch.zeros(50)
    bad[where] = value
    assert not all_finite([*good, bad])
    assert not all_finite([bad.double()])


def test_a_norm_that_overflows_is_still_finite() -> None:
    assert all_finite([torch.full((100,), 3e38)])
    assert all_finite([])


def test_clip_bounds_modules_together_by_one_norm() -> None:
    modules = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    for module, value in zip(modules, (3.0, 4.0), strict=True):
        module.weight.grad = torch.full((1, 1), value)
    clip(modules, 10.0)
    assert [m.weight.grad.item() for m in modules if m.weight.grad is not None] == [3, 4]
    clip(modules, 1.0)
    assert [m.weight.grad.item() for m in modules if m.weight.grad is not None] == pytest.approx([0.6, 0.8], abs=1e-6)
