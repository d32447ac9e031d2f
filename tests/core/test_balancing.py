"""Classes are balanced in integers, and rings hand out every row equally often."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sfl.core.balancing import Balancing, balance_counts, label_capped_weights, label_counts
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.rings import Rings, ring_take

HELD = np.array([[6, 2], [4, 1]])


@pytest.mark.parametrize(
    ("strategy", "target", "wanted"),
    [
        ("none", "mean", [[6, 2], [4, 1]]),
        ("trimming", "mean", [[2, 2], [2, 1]]),
        ("replication", "mean", [[6, 6], [4, 3]]),
        ("target", "mean", [[4, 4], [3, 2]]),
        ("target", "median", [[6, 6], [4, 3]]),
        ("target", 5, [[3, 3], [2, 1]]),
    ],
)
def test_worked_example(strategy: Any, target: Any, wanted: list[list[int]]) -> None:
    assert balance_counts(HELD, strategy, target).tolist() == wanted


def test_integers_do_not_misfloor() -> None:
    """22 rows of which 15 go to a target of 0: 22 * 15 / 22 is 15, where floats give 14."""
    assert balance_counts(np.array([[15, 9], [7, 9]]), "target", 0)[0, 0] == 0


def test_class_totals_stay_within_their_bounds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        counts = rng.integers(0, 30, size=(rng.integers(1, 8), rng.integers(2, 6)))
        totals, holders = counts.sum(axis=0), (counts > 0).sum(axis=0)
        present = totals > 0
        if not present.any():
            continue
        fewest, most = totals[present].min(), totals[present].max()
        trimmed = balance_counts(counts, "trimming")
        assert (trimmed <= counts).all()
        assert (trimmed.sum(axis=0)[present] >= fewest).all()
        assert (trimmed.sum(axis=0)[present] <= fewest + holders[present] - 1).all()
        grown = balance_counts(counts, "replication")
        assert (grown >= counts).all()
        assert (grown.sum(axis=0)[present] <= most).all()
        assert (grown.sum(axis=0)[present] >= most - holders[present] + 1).all()
        for strategy, level in (("trimming", fewest), ("replication", most), ("target", totals.sum() // present.sum())):
            exact = balance_counts(counts, strategy, rounding="largest_remainder")  # type: ignore[arg-type]
            assert (exact.sum(axis=0) == np.where(present, level, 0)).all()
            assert (exact[counts == 0] == 0).all()
            quota = counts * level / np.maximum(totals, 1)
            assert (np.abs(exact - quota) < 1).all()


def test_missing_classes_are_an_error_unless_allowed() -> None:
    held = np.array([[6, 0, 2], [4, 0, 1]])
    with pytest.raises(ConfigError, match=r"allow_missing_labels=False .* no participant has labels \[1\]") as refusal:
        Balancing().amounts(held)
    assert "\n" not in str(refusal.value)
    assert Balancing(allow_missing_labels=True).amounts(held).tolist() == [[2, 0, 2], [2, 0, 1]]
    assert Balancing("none").amounts(held).tolist() == held.tolist()
    assert Balancing("target", allow_missing_labels=True).amounts(held).sum(axis=0).tolist() == [7, 0, 6]


def test_a_balance_without_rows_is_an_error() -> None:
    with pytest.raises(ConfigError, match="leaves no row"):
        Balancing("target", 1, allow_missing_labels=True).amounts(np.zeros((2, 3), np.int64))


@pytest.mark.parametrize("bad", [{"strategy": "cut"}, {"target": 0}, {"target": True}, {"target": "mode"},
                                 {"rounding": "up"}])  # fmt: skip
def test_ranges(bad: dict[str, Any]) -> None:
    key = next(iter(bad))
    with pytest.raises(ConfigError, match=f"balancing.{key}={bad[key]!r} is not allowed: "):
        Balancing(**bad).checked()


def test_sequences_have_no_class() -> None:
    with pytest.raises(ConfigError, match=r"labels of shape \(4, 3\) have no class per row") as refusal:
        label_counts(np.zeros((4, 3), np.int64), [np.arange(4)], 5)
    assert "\n" not in str(refusal.value)


def test_capped_weights_are_shares_of_rows() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        counts = rng.integers(0, 20, size=(rng.integers(1, 6), 5)) * np.array([1, 1, 0, 1, 1])
        counts[0, 0] += 1
        wanted = counts.sum(axis=1) / counts.sum()
        assert label_capped_weights(counts) == pytest.approx(wanted.tolist(), abs=1e-12)


# --- rings ------------------------------------------------------------------------------------------------------------


def test_ring_goes_round() -> None:
    ring, pointer, seen = np.array(["a", "b", "c"]), 0, []
    for _ in range(3):
        taken, pointer = ring_take(ring, pointer, 2)
        seen.append("".join(taken))
    assert seen == ["ab", "ca", "bc"]
    taken, pointer = ring_take(ring, 1, 7)
    assert ("".join(taken), pointer) == ("abcabcb", 2)
    assert ring_take(ring, 2, 0)[1] == 2


def test_everything_comes_equally_often_within_one() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        ring, pointer, seen = np.arange(rng.integers(1, 9)), 0, Counter[int]()
        for _ in range(12):
            taken, pointer = ring_take(ring, pointer, int(rng.integers(0, 20)))
            seen.update(taken.tolist())
            assert max(seen[i] for i in ring) - min(seen[i] for i in ring) <= 1


def rings() -> Rings:
    labels = np.array([0, 1, 0, 1, 0, 1])
    made = Rings()
    made.prepare(labels, [np.array([4, 0, 5, 2]), np.array([1, 3])], 2)
    return made


def test_draws_keep_the_order_of_the_rows_and_a_draft_is_no_fact() -> None:
    ring = rings()
    ring.draft()
    assert ring.draw(0, np.array([3, 1])).tolist() == [4, 0, 5, 2]
    assert ring.draw(0, np.array([2, 3])).tolist() == [4, 0, 5, 5, 5]
    ring.draft()
    assert ring.draw(0, np.array([2, 0])).tolist() == [4, 0]
    ring.keep()
    ring.draft()
    assert ring.draw(0, np.array([2, 0])).tolist() == [4, 2]
    assert ring.draw(1, np.array([0, 1])).tolist() == [1]


def test_two_whole_draws_visit_every_row_exactly_twice() -> None:
    ring = rings()
    ring.draft()
    drawn = [row for _ in range(2) for row in ring.draw(0, np.array([3, 1])).tolist()]
    assert Counter(drawn) == {4: 2, 0: 2, 5: 2, 2: 2}


def test_pointers_load_into_rings_that_saw_no_data() -> None:
    ring = rings()
    ring.draft()
    ring.draw(0, np.array([2, 0]))
    ring.keep()
    other = Rings()
    other.load_state_dict(ring.state_dict())
    assert torch.equal(other.pointers, torch.tensor([[2, 0], [0, 0]]))
