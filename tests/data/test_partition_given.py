"""Partitions that are in the data: by owner, and from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_sfl.core.errors import ConfigError, DataError
from lightning_sfl.core.randomness import stream
from lightning_sfl.data.partition_given import FromFile, Natural


def test_natural_takes_all_owners_or_a_seeded_draw() -> None:
    owner = np.random.default_rng(0).integers(0, 30, size=400)
    labels = np.zeros(400, int)
    every = Natural().split(labels, None, stream(0, "p"), owner)
    assert [set(owner[part]) for part in every] == [{i} for i in range(30)]
    assert sum(map(len, every)) == 400
    some = Natural().split(labels, 5, stream(0, "p"), owner)
    taken = [int(owner[part][0]) for part in some]
    assert len(set(taken)) == 5
    assert all(np.array_equal(part, every[name]) for part, name in zip(some, taken, strict=True))
    with pytest.raises(ConfigError, match="num_clients=31"):
        Natural().split(labels, 31, stream(0, "p"), owner)
    with pytest.raises(DataError, match="no owner"):
        Natural().split(labels, None, stream(0, "p"))


def test_from_file_reads_lists_and_refuses_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "parts.json"

    def split(content: object, num_clients: int | None = None) -> list[list[int]]:
        path.write_text(json.dumps(content))
        return [part.tolist() for part in FromFile(str(path)).split(np.zeros(6, int), num_clients, stream(0, "p"))]

    assert split([[3, 1], [0], []]) == [[1, 3], [0], []]
    assert split({"rows": [[5], [2]], "seed": 1}, 2) == [[5], [2]]
    with pytest.raises(ConfigError, match=r"num_clients=3 .* lists 2 clients"):
        split([[1], [2]], 3)
    for wrong in ([[1], [1]], [[6]], [[-1]], [], {"a": 1}, [[1.5]], [["x"]], [[True]], 7):
        with pytest.raises(DataError, match=r"partition file .*parts.json"):
            split(wrong)
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        FromFile(str(path)).split(np.zeros(6, int), None, stream(0, "p"))
    with pytest.raises(DataError, match="cannot be read"):
        FromFile(str(tmp_path / "absent.json")).split(np.zeros(6, int), None, stream(0, "p"))
