"""Numbers read off curves, in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_sfl.records.curves import Spread, crossing, curve, last_mean, mean_curve, quantile, spread
from lightning_sfl.records.runs import Run, read_runs
from tests.records import made


def read(folder: Path) -> Run:
    return read_runs([folder])[0][0]


def test_the_mean_over_the_last_rounds(tmp_path: Path) -> None:
    run = read(made.run(tmp_path / "a", [0.1, 0.5, 0.7, 0.9]))
    assert last_mean(run, "val/acc", 1) == 0.9
    assert last_mean(run, "val/acc", 3) == pytest.approx((0.5 + 0.7 + 0.9) / 3, abs=1e-15)
    assert last_mean(run, "val/acc", 4) == pytest.approx(0.55, abs=1e-15)
    assert last_mean(run, "val/acc", 5) is None
    assert last_mean(run, "nothing", 1) is None


@pytest.mark.parametrize("count", [1, 2, 5, 60])
def test_quantiles_are_those_of_numpy(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    for share in (0.0, 0.5, 0.95, 1.0):
        assert quantile(values.tolist(), share) == pytest.approx(float(np.quantile(values, share)))
    assert quantile([], 0.5) is None


def test_the_deviation_is_that_of_a_sample() -> None:
    assert spread([2.0, 4.0, 6.0]) == Spread(4.0, 2.0, 3, 3)
    assert spread([2.0, 4.0]).sd == pytest.approx(np.std([2, 4], ddof=1), abs=1e-15)
    assert spread([3.0]) == Spread(3.0, None, 1, 1)
    assert spread([]) == Spread(None, None, 0, 0)


def test_where_a_seed_lacks_a_number_there_is_no_mean() -> None:
    assert spread([1.0, None, 3.0]) == Spread(None, None, 2, 3)
    assert spread([1.0, float("nan")]) == Spread(None, None, 1, 2)


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        ([0.0, 0.5, 1.0], 0.75, 2.5),
        ([0.0, 0.5, 1.0], 0.5, 2.0),
        ([0.9, 0.1], 0.8, 1.0),
        ([0.2, 0.4], 0.8, None),
        ([0.6, 0.2, 0.8], 0.7, 2.5),  # the best so far is 0.6 all along, whatever round 2 said
        ([0.5, 0.5, 0.5, 1.0], 0.75, 3.5),
        ([], 0.5, None),
    ],
)
def test_the_first_crossing_of_the_best_so_far(values: list[float], target: float, expected: float | None) -> None:
    assert crossing([(i + 1.0, value) for i, value in enumerate(values)], target) == pytest.approx(expected, abs=1e-12)


def test_a_crossing_lies_between_its_neighbours_and_grows_with_the_target() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = list(zip(np.cumsum(rng.uniform(0.1, 3, 8)).tolist(), rng.uniform(0, 1, 8).tolist(), strict=True))
        found = [crossing(points, target) for target in np.linspace(0.05, 0.95, 19)]
        known = [x for x in found if x is not None]
        assert known == sorted(known)
        assert found[len(known) :] == [None] * (len(found) - len(known))
        for target, x in zip(np.linspace(0.05, 0.95, 19), known, strict=False):
            first = next(i for i, (_, value) in enumerate(points) if value >= target)
            assert points[max(first - 1, 0)][0] <= x <= points[first][0]


def test_the_same_crossing_along_every_axis(tmp_path: Path) -> None:
    run = read(made.run(tmp_path / "a", [0.0, 0.5, 1.0, 1.0]))
    found = {axis: crossing(curve(run, "val/acc", axis), 0.75) for axis in ("rounds", "server steps", "samples")}
    assert found == {"rounds": 2.5, "server steps": 10.0, "samples": 100.0}
    assert crossing(curve(run, "val/acc", "MB moved"), 0.75) == pytest.approx(5.0, abs=1e-12)


def test_a_round_without_a_position_has_no_point(tmp_path: Path) -> None:
    run = read(made.run(tmp_path / "a", [0.1, 0.2, 0.3]))
    del run.records[1]["scalars"]["count/server_steps_total"]
    assert curve(run, "val/acc", "server steps") == [(4.0, 0.1), (12.0, 0.3)]


def test_mean_curves_hold_the_rounds_that_all_have() -> None:
    found = mean_curve([{0: (1, 0.0), 2: (2, 1.0), 3: (3, 5.0)}, {0: (3, 1.0), 1: (4, 7.0), 2: (4, 3.0), 5: (5, 9.0)}])
    assert [(x, one.mean) for x, one in found] == [(2.0, 0.5), (3.0, 2.0)]
    assert found[1][1].sd == pytest.approx(2**0.5, abs=1e-15)
    assert mean_curve([{0: (1, 0.0)}, {}]) == []
