"""SmashMix and GradMix as functions of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.mixing import GradMix, SmashMix, gradmix, gradmix_members, mixed, share_of, smashmix_pairs


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_shares_do_not_misfloor() -> None:
    assert [share_of(10, 0.5), share_of(3, 0.5), share_of(100, 0.29), share_of(10, 0.2), share_of(4, 0.0)] == [
        5,
        1,
        29,
        2,
        0,
    ]


def test_everybody_gets_as_many_distinct_partners() -> None:
    for clients, ratio, partners in ((10, 0.2, 2), (5, 1.0, 4), (3, 0.2, 0), (1, 1.0, 0), (4, 9.0, 3)):
        pairs = smashmix_pairs(clients, ratio, rng())
        assert len(pairs) == len(set(pairs)) == clients * partners
        assert [sum(one == client for one, _ in pairs) for client in range(clients)] == [partners] * clients
        assert all(one != other for one, other in pairs)


def test_partners_are_drawn_evenly() -> None:
    seen = np.zeros((4, 4))
    for seed in range(600):
        for one, other in smashmix_pairs(4, 0.25, rng(seed)):
            seen[one, other] += 1
    assert (seen.sum(axis=1) == 600).all()
    assert (np.abs(seen[~np.eye(4, dtype=bool)] - 200) < 5 * 12).all()


def test_mix() -> None:
    one, other = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True), torch.tensor([[10.0], [20.0]])
    got = mixed(one, other, 0.25)
    assert isinstance(got, torch.Tensor)
    assert got.tolist() == [[7.75], [15.5]]
    assert not got.requires_grad
    assert torch.equal(mixed((one, one), (other, other), 1.0)[1], one[:2])


def test_pairs_of_unequal_batches() -> None:
    sizes = [4, 4, 3, 4]
    skipped = SmashMix(ratio=1.0).draw(sizes, rng())
    truncated = SmashMix(ratio=1.0, unequal="truncate").draw(sizes, rng())
    assert len(truncated) == 12
    assert skipped == [pair for pair in truncated if 2 not in pair[:2]]


def test_shares_of_a_pair() -> None:
    uniform = np.array([share for _, _, share in SmashMix(ratio=1.0).draw([1] * 60, rng())])
    beta = np.array([share for *_, share in SmashMix(ratio=1.0, distribution="beta", alpha=8.0).draw([1] * 60, rng())])
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    assert abs(uniform.var() - 1 / 12) < 0.005
    assert abs(beta.var() - 1 / (4 * 17)) < 0.002


def test_weights_of_mixed_losses() -> None:
    assert SmashMix().weight(20) == 1.0
    assert SmashMix(loss_weight=3.0, normalize=True).weight(20) == 0.15


# --- gradmix ----------------------------------------------------------------------------------------------------------

SLICES = [(torch.tensor([[float(i), 1.0]] * 2),) for i in range(4)]


@pytest.mark.parametrize(("reduce", "wanted"), [("sum", [4.0, 2.0]), ("mean", [2.0, 1.0])])
def test_members_have_one_gradient_and_the_others_their_own(reduce: Any, wanted: list[float]) -> None:
    after = gradmix(SLICES, [3, 1], reduce)
    assert [after[i] is SLICES[i] for i in range(4)] == [True, False, True, False]
    assert after[1][0].tolist() == after[3][0].tolist() == [wanted] * 2


def test_nobody_and_one_change_nothing() -> None:
    assert gradmix(SLICES, [], "sum") == SLICES
    for reduce in ("sum", "mean"):
        after = gradmix(SLICES, [2], reduce)  # type: ignore[arg-type]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(after, SLICES, strict=True))


def test_another_size_than_the_first_members_keeps_its_own() -> None:
    uneven = [*SLICES, (torch.ones(1, 2),)]
    after = gradmix(uneven, [0, 4, 3], "sum")
    assert after[4] is uneven[4]
    assert after[0][0].tolist() == [[3.0, 2.0]] * 2
    assert gradmix(uneven, [4, 0, 3], "sum")[3] is uneven[3]


def test_number_of_members() -> None:
    assert [len(gradmix_members(n, 0.5, rng())) for n in (10, 3, 1)] == [5, 1, 0]
    assert sorted(gradmix_members(6, 1.0, rng())) == list(range(6))
    assert gradmix_members(6, 0.0, rng()) == []


BAD: list[tuple[Any, str, Any]] = [
    (SmashMix, "ratio", -0.1), (SmashMix, "distribution", "normal"), (SmashMix, "alpha", 0.0),
    (SmashMix, "loss_weight", float("nan")), (SmashMix, "unequal", "pad"), (GradMix, "phi", 1.1),
    (GradMix, "reduce", "max"), (GradMix, "members", "fixed"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "key", "value"), BAD)
def test_ranges(cls: Any, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{cls.__name__.lower()}.{key}={value!r} is not allowed: "):
        cls(**{key: value}).checked()
