"""Who takes part: equally likely without replacement, or listed in a file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.selection import FixedSchedule, Uniform

AVAILABLE = np.array([1, 3, 4, 7, 8])


def written(tmp_path: Path, document: object) -> str:
    path = tmp_path / "schedule.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def test_uniform_draws_distinct_available_clients() -> None:
    for index in range(50):
        chosen = Uniform().select(index, AVAILABLE, 3, seed=0)
        assert len(set(chosen)) == 3
        assert set(chosen) <= set(AVAILABLE.tolist())
        assert all(type(client) is int for client in chosen)
    assert Uniform().select(7, AVAILABLE, 3, 0) == Uniform().select(7, AVAILABLE, 3, 0)
    assert Uniform().most(3) == 3


def test_uniform_is_uniform() -> None:
    """2000 rounds of 2 in 5: each is picked 800 times on average, with a standard deviation of 22."""
    picked = Counter(client for index in range(2000) for client in Uniform().select(index, AVAILABLE, 2, seed=1))
    assert set(picked) == set(AVAILABLE.tolist())
    assert all(abs(count - 800) < 5 * 22 for count in picked.values())


def test_uniform_takes_all_when_there_are_too_few() -> None:
    assert sorted(Uniform().select(0, AVAILABLE, 99, seed=0)) == AVAILABLE.tolist()


@pytest.mark.parametrize(
    "document",
    [
        [[1, 3], [4, 7, 8], [3]],
        {"rounds": [[1, 3], [4, 7, 8], [3]]},
        {"1": [1, 3], "2": [4, 7, 8], "3": [3]},
        {"3": [3], "1": [1, 3], "2": [4, 7, 8]},
        [[1, 3, 1, 3], [4, 7, 8], [3]],
    ],
)
def test_schedule_formats(document: object, tmp_path: Path) -> None:
    schedule = FixedSchedule(written(tmp_path, document))
    assert [schedule.select(index, AVAILABLE, 1, seed=0) for index in range(3)] == [[1, 3], [4, 7, 8], [3]]
    assert schedule.most(1) == 3


def test_rounds_of_an_object_are_ordered_as_numbers(tmp_path: Path) -> None:
    schedule = FixedSchedule(written(tmp_path, {str(index + 1): [index] for index in range(12)}))
    assert schedule.rounds == [[index] for index in range(12)]


@pytest.mark.parametrize(
    "document",
    [
        "no json {", "", 7, None, [7], [[]], [[1.0]], [["1"]], [[True]], ["12"], [[[1]]], {"rounds": 3}, {"first": [1]},
        [], {}, {"rounds": []}, {"1": [1], "3": [3]}, {"0": [1], "1": [3]},
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_refused_in_one_line(document: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"selection.path=") as refusal:
        FixedSchedule(written(tmp_path, document))
    assert "\n" not in str(refusal.value)


def test_schedule_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"selection.path=.*absent.json.* existing"):
        FixedSchedule(str(tmp_path / "absent.json"))


def test_schedule_ends_and_strangers(tmp_path: Path) -> None:
    schedule = FixedSchedule(written(tmp_path, [[1], [2, 3], [-1]]))
    with pytest.raises(ConfigError, match=r"round 1 lists clients \[2\]"):
        schedule.select(1, AVAILABLE, 1, seed=0)
    with pytest.raises(ConfigError, match=r"round 2 lists clients \[-1\]"):
        schedule.select(2, AVAILABLE, 1, seed=0)
    with pytest.raises(ConfigError, match="lists 3 rounds, but round 3"):
        schedule.select(3, AVAILABLE, 1, seed=0)
