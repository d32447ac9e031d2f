"""Watchers on rounds told by hand, against closed forms."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sfl.callbacks import (
    CosineAlignment,
    CutScale,
    Drift,
    InitialDistance,
    RoundRecord,
    Traffic,
    UpdateCounts,
    Watcher,
)
from lightning_sfl.core import events
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.methods import SFL, MultiSFL
from lightning_sfl.records.round_log import read_rounds
from tests import tiny

ORIGIN = [0.0] * 4


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def test_alignment_and_disagreement(stage: Any) -> None:
    told = stage([CosineAlignment()])
    told.start([ORIGIN, ORIGIN])
    told.step([[1, 0, 0, 0], [0.6, 0.8, 0, 0]])
    record = told.end(rows=[5, 5])
    assert record["scalars"]["align/cos_pair_client"] == close(0.6)
    assert record["scalars"]["disagree/A_ratio"] == close(0.2)
    assert record["scalars"]["disagree/A_null"] == close(0.5)
    assert record["clients"]["1"]["norm"] == close(1.0)
    assert told.report.pictures["align/cos_matrix"][0][1] == close(0.6)
    assert "align/cos_pair_server" not in record["scalars"]


def test_server_copies_are_compared_where_there_are_any(stage: Any) -> None:
    told = stage([CosineAlignment()], copies=True)
    told.start([ORIGIN, ORIGIN])
    told.step([[1, 0, 0, 0]] * 2)
    told.serve([1, 0, 0], branch=0)
    told.serve([0, 2, 0], branch=1)
    assert told.end(rows=[1, 1])["scalars"]["align/cos_pair_server"] == close(0.0)


def test_offsets_of_the_starts_change_nothing(stage: Any) -> None:
    draw = np.random.default_rng(0)
    moves, offsets = draw.normal(size=(3, 4)), 10 * draw.normal(size=(3, 4))
    offsets -= offsets.mean(0)
    found = []
    for starts in (np.zeros((3, 4)), offsets):
        told = stage([CosineAlignment()])
        told.start(starts.tolist())
        told.step(moves.tolist())
        found.append(told.end(rows=[3, 4, 5])["scalars"])
    assert found[1] == {tag: pytest.approx(value, rel=1e-9, abs=1e-10) for tag, value in found[0].items()}
    assert len(found[0]) == 12


def test_a_round_of_one_writes_no_cosine_and_counts_what_it_skipped(stage: Any) -> None:
    told = stage([CosineAlignment(), InitialDistance()])
    told.start([ORIGIN])
    told.step([[1, 1, 1, 1]])
    scalars = told.end(rows=[5])["scalars"]
    assert not [tag for tag in scalars if "cos" in tag]
    assert scalars["align/n_skipped"] == 2
    assert scalars["align/n_valid"] == 1
    assert scalars["align/norm_mean"] == close(2.0)
    assert scalars["init/n_skipped"] == 2
    assert not told.report.pictures


def test_a_round_of_none_writes_nothing_but_the_counters(stage: Any) -> None:
    told = stage([CosineAlignment(), InitialDistance(), CutScale()])
    told.start([])
    assert told.end(rows=[])["scalars"] == {}


def test_dropped_clients_are_left_out_of_alignment(stage: Any) -> None:
    told = stage([CosineAlignment(), UpdateCounts()])
    told.start([ORIGIN] * 3)
    told.step([[1, 0, 0, 0], [0, 1, 0, 0], [-5, -5, 0, 0]])
    record = told.end(rows=[1, 1, 1], finished=[True, True, False])
    assert record["scalars"]["align/cos_pair_client"] == close(0.0)
    assert record["scalars"]["count/finished"] == 2
    assert record["scalars"]["count/participants"] == 3
    assert [record["clients"][c]["w"] for c in "012"] == [0.5, 0.5, 0.0]
    assert record["clients"]["2"]["finished"] is False


@pytest.mark.parametrize("scheme", ["samples", "aggregation", "uniform"])
def test_weight_schemes(stage: Any, scheme: Any) -> None:
    told = stage([CosineAlignment(weights=scheme)])
    told.start([ORIGIN, ORIGIN])
    told.step([[1, 0, 0, 0], [0, 3, 0, 0]])
    record = told.end(rows=[1, 3], weights=[4, 1])
    share = {"samples": 0.25, "aggregation": 0.8, "uniform": 0.5}[scheme]
    assert record["scalars"]["align/norm_mean"] == close(share + 3 * (1 - share))
    assert record["weights_scheme"] == scheme


def test_initial_distance(stage: Any) -> None:
    told = stage([InitialDistance()])
    told.client_half.weight.data[:] = torch.tensor([3.0, 4, 0, 0])
    told.start([[3.0, 4, 0, 0], [3.0, 4, 2, 0], [3.0, 4, 0, 2]])
    record = told.end(rows=[1, 1, 1])
    assert record["scalars"]["init/dist"] == close(math.sqrt((4 + 4 + 8) / 3))
    assert record["scalars"]["init/dist_rel"] == close(math.sqrt(16 / 3) / 5)
    assert record["scalars"]["init/cos"] == close(0)
    assert [record["clients"][c]["init_offset"] for c in "012"] == [0.0, 2.0, 2.0]
    told.start([[3.0, 4, 0, 0]] * 3)
    assert told.end(rows=[1, 1, 1])["scalars"] == {"init/dist": 0.0, "init/dist_rel": 0.0}


def test_initial_distance_of_running_statistics(stage: Any) -> None:
    """In the buffers of three clients at (0, 0), (2, 0) and (0, 2); weights are equal, and counters do not count."""
    told = stage([InitialDistance(buffers=True)])
    told.client_half.weight.data += 1
    told.start([])
    for slot, values in enumerate([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]):
        own = copy.deepcopy(told.client_half)
        own.register_buffer("running_mean", torch.tensor(values))
        own.register_buffer("num_batches_tracked", torch.tensor(10 * slot))
        told.tell(events.ClientStart, slot, slot, own, None)
    assert told.end(rows=[])["scalars"] == {
        "init/dist": 0.0,
        "init/dist_rel": 0.0,
        "init/buf_dist": close(math.sqrt((4 + 4 + 8) / 3)),
    }


@pytest.mark.parametrize(("cls", "apart"), [(SFL, False), (MultiSFL, True)])
def test_running_statistics_of_real_starts(tmp_path: Path, cls: Any, apart: bool) -> None:
    fit = tiny.trainer(3, [InitialDistance(buffers=True), RoundRecord()], default_root_dir=tmp_path)
    fit.fit(tiny.build(cls, tiny.network(norm=True)), tiny.rows())
    found = [record["scalars"]["init/buf_dist"] for record in read_rounds(tmp_path / "rounds.jsonl")]
    assert found[0] == 0
    assert (found[2] > 0.01) == apart


def test_there_must_be_running_statistics_to_compare(tmp_path: Path) -> None:
    fit = tiny.trainer(1, [InitialDistance(buffers=True)], default_root_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"initial_distance\.buffers=True is not allowed: false where"):
        fit.fit(tiny.build(SFL), tiny.rows())


@pytest.mark.parametrize("every", [0, 2])
def test_only_due_rounds_are_measured(stage: Any, every: int) -> None:
    watchers = [CosineAlignment(every), Drift(every), InitialDistance(every), Traffic(every), UpdateCounts(every)]
    told = stage(watchers)
    for round in range(4):
        told.start([ORIGIN, ORIGIN])
        told.step([[1, 0, 0, 0], [0, 1, 0, 0]])
        told.serve([1, 0, 0])
        scalars = told.end(rows=[1, 1])["scalars"]
        families = {tag.split("/")[0] for tag in scalars}
        due = every and round % every == 0
        assert families == ({"align", "disagree", "drift", "init", "traffic", "count", "server"} if due else set())
    assert watchers[-1].totals["client_steps"] == 8


def test_impossible_settings_are_refused() -> None:
    for make in (lambda: Watcher(-1), lambda: Drift(sample_interval=0), lambda: CosineAlignment(picture_every=-1)):
        with pytest.raises(ConfigError):
            make()
