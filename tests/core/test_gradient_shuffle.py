"""What a shuffle of the joint cut gradient keeps: its rows, or at least their sum."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.gradient_shuffle import GradientShuffle, KeptShares, adaptive_shares, exchanged

SIZES, NUM_CLASSES = (2, 3, 5), 3


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def slices(*shape: int, seed: int = 0) -> list[tuple[Tensor, ...]]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, *shape, generator=draw, dtype=torch.float64),) for size in SIZES]


def labels() -> list[Tensor]:
    return [torch.tensor([0, 1]), torch.tensor([2, 2, 0]), torch.tensor([1, 1, 1, 0, 2])]


def joined(parts: list[tuple[Tensor, ...]], part: int = 0) -> Tensor:
    return torch.cat([each[part] for each in parts])


def sorted_rows(joint: Tensor) -> list[Any]:
    return sorted(joint.flatten(1).tolist())


@pytest.mark.parametrize("shape", [(4,), (2, 3, 3)])
@pytest.mark.parametrize("strategy", ["random", "inplace"])
def test_rows_change_places_and_nothing_else(strategy: Any, shape: tuple[int, ...]) -> None:
    before = slices(*shape)
    after = GradientShuffle(strategy)(before, labels(), NUM_CLASSES, rng())
    assert [len(each[0]) for each in after] == list(SIZES)
    assert not torch.equal(joined(after), joined(before))
    assert sorted_rows(joined(after)) == sorted_rows(joined(before))


def test_shares_that_rows_keep_are_told_once() -> None:
    """Rows (1, 0), (0, 1), (-1, 0): the mean is (0, 1/3), cosines are 0, 1, 0, and shares 1/2, sigmoid(2), 1/2."""
    kept = KeptShares()
    assert kept.told() == {}
    own = [(torch.tensor([[1.0, 0.0]]),), (torch.tensor([[0.0, 1.0], [-1.0, 0.0]]),)]
    shuffle = GradientShuffle("average_adaptive_alpha")
    for _ in range(2):
        shuffle(own, [torch.tensor([0]), torch.tensor([0, 1])], 2, rng(), kept)
    high = 1 / (1 + math.exp(-2))
    expected = {"shuffle/alpha_mean": (1 + high) / 3, "shuffle/alpha_min": 0.5, "shuffle/alpha_max": high}
    assert kept.told() == pytest.approx(expected)
    assert kept.told() == {}


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_average(weight: float) -> None:
    before = slices(2, 2)
    after = GradientShuffle("average", average_weight=weight)(before, labels(), NUM_CLASSES, rng())
    mean = joined(before).mean(dim=0)
    torch.testing.assert_close(joined(after), (1 - weight) * joined(before) + weight * mean)
    torch.testing.assert_close(joined(after).sum(dim=0), joined(before).sum(dim=0))
    assert (weight == 0) == torch.equal(joined(after), joined(before))


def test_adaptive_alpha() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(adaptive_shares(rows, 2.0), torch.tensor([0.5, 0.880797, 0.5]), rtol=0, atol=1e-6)
    shuffle = GradientShuffle("average_adaptive_alpha")
    (after,) = shuffle([(rows,)], [torch.zeros(3, dtype=torch.int64)], 1, rng())[0]
    wanted = torch.tensor([[0.5, 0.166667], [0.0, 0.920531], [-0.5, 0.166667]])
    torch.testing.assert_close(after, wanted, rtol=0, atol=1e-6)


def test_adaptive_alpha_is_one_number_a_row() -> None:
    """Maps are flattened: reshaping them changes nothing."""
    flat, maps = slices(12), [(part.view(-1, 3, 2, 2),) for (part,) in slices(12)]
    shuffle = GradientShuffle("average_adaptive_alpha")
    both = [joined(shuffle(each, labels(), NUM_CLASSES, rng())) for each in (flat, maps)]
    torch.testing.assert_close(both[0], both[1].flatten(1))


def test_zero_gradients_stay_finite() -> None:
    shuffle = GradientShuffle("average_adaptive_alpha")
    assert (
        shuffle([(torch.zeros(2, 3),)], [torch.zeros(2, dtype=torch.int64)], 1, rng())[0][0].tolist() == [[0.0] * 3] * 2
    )


def test_a_tuple_is_shuffled_by_the_same_order_or_only_in_its_first_part() -> None:
    before = [(part, 10 * part) for (part,) in slices(3)]
    for strategy in ("random", "inplace", "average", "average_adaptive_alpha"):
        after = GradientShuffle(strategy)(before, labels(), NUM_CLASSES, rng())  # type: ignore[arg-type]
        torch.testing.assert_close(joined(after, 1), 10 * joined(after, 0))
        first = GradientShuffle(strategy, "activation_only")(before, labels(), NUM_CLASSES, rng())  # type: ignore[arg-type]
        assert torch.equal(joined(first, 0), joined(after, 0))
        assert torch.equal(joined(first, 1), joined(before, 1))


def test_complementary_clients_end_with_every_class() -> None:
    source = exchanged((4, 4), [0, 0, 0, 0, 1, 1, 1, 1], 2, rng())
    got = np.array([0, 0, 0, 0, 1, 1, 1, 1])[source]
    assert Counter(got[:4].tolist()) == Counter(got[4:].tolist()) == {0: 2, 1: 2}


def test_exchange_is_a_permutation_that_meets_quotas_where_it_can() -> None:
    for seed in range(200):
        draw = rng(seed)
        num_classes = int(draw.integers(1, 5))
        sizes = draw.integers(1, 9, size=draw.integers(1, 6)).tolist()
        held = draw.integers(0, num_classes, size=sum(sizes))
        source = exchanged(sizes, held.tolist(), num_classes, draw)
        assert sorted(source.tolist()) == list(range(sum(sizes)))
        owners, got = np.repeat(np.arange(len(sizes)), sizes), held[source]
        for client, size in enumerate(sizes):
            for label in range(num_classes):
                quota = size // num_classes
                before = ((owners == client) & (held == label)).sum()
                assert ((owners == client) & (got == label)).sum() >= min(before, quota)


def test_a_client_smaller_than_the_number_of_classes_is_refilled_at_random() -> None:
    sources = {tuple(exchanged((2, 2), [0, 1, 2, 0], 3, rng(seed)).tolist()) for seed in range(200)}
    assert len(sources) == 24


BAD = [("strategy", "swap"), ("target", "first"), ("average_weight", 1.5), ("average_weight", float("nan")),
       ("adaptive_beta", float("inf"))]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BAD)
def test_ranges(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"gradient_shuffle.{key}={value!r} is not allowed: "):
        GradientShuffle(**{key: value}).checked()
