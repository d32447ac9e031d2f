"""Watchers on rounds told by hand, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_sfl.callbacks import CosineAlignment, CutScale, Drift, InitialDistance, Traffic, UpdateCounts, Watcher
from lightning_sfl.core import events
from lightning_sfl.core.errors import ConfigError

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


@pytest.mark.parametrize(("steps", "interval"), [(1, 1), (5, 1), (6, 2), (3, 4)])
def test_drift_under_constant_steps(stage: Any, steps: int, interval: int) -> None:
    told = stage([Drift(sample_interval=interval)])
    told.start([ORIGIN, ORIGIN])
    move, server_move = [0.1, 0, 0, 0.2], [0.3, 0, 0]
    for _ in range(steps):
        told.step([move, move])
        told.serve(server_move)
    scalars = told.end(rows=[5, 15], merged=[steps * m for m in move])["scalars"]
    for half, squared in {"client": 0.05, "server": 0.09}.items():
        measured = [b * b * squared for b in range(1, steps + 1) if b % interval == 0]
        assert scalars[f"drift/end_{half}"] == close(steps**2 * squared)
        assert scalars[f"drift/end_w_{half}"] == close(steps**2 * squared)
        assert scalars[f"drift/update_sq_{half}"] == close(steps**2 * squared)
        assert scalars[f"drift/agg_residual_{half}"] == close(0)
        if measured:
            assert scalars[f"drift/traj_{half}"] == close(sum(measured) / len(measured))
            assert scalars[f"drift/traj_sw_{half}"] == scalars[f"drift/traj_{half}"]
            assert scalars[f"drift/norm_{half}"] == close(sum(measured) / len(measured) / (steps**2 * squared))
        else:
            assert f"drift/traj_{half}" not in scalars
    assert scalars.get("drift/n_skipped", 0) == (0 if steps >= interval else 6)


def test_drift_is_from_the_own_start_and_the_residual_sees_a_foreign_merge(stage: Any) -> None:
    told = stage([Drift()])
    told.start([[100.0, 0, 0, 0], [0, -100.0, 0, 0]])
    told.step([[1, 0, 0, 0], [0, 1, 0, 0]])
    scalars = told.end(rows=[1, 3], merged=[0.25, 0.75 + 0.5, 0, 0])["scalars"]
    assert scalars["drift/traj_client"] == close(1.0)
    assert scalars["drift/end_w_client"] == close(1.0)
    assert scalars["drift/agg_residual_client"] == close(0.5)
    assert "drift/traj_server" not in scalars


def test_drift_of_server_copies_with_either_optimizer(stage: Any) -> None:
    told = stage([Drift()], copies=True)
    told.start([ORIGIN, ORIGIN])
    for branch, size in enumerate([1.0, 2.0]):
        told.serve([size, 0, 0], branch)
    told.step([ORIGIN, ORIGIN])
    by_server = told.end(rows=[1, 1])["scalars"]["drift/traj_server"]
    assert by_server == close((1 + 4) / 2)
    told.start([ORIGIN, ORIGIN])
    for copy, size in zip(told.copies, [1.0, 2.0], strict=True):
        with torch.no_grad():
            copy.weight[0, 0] += size
    told.step([ORIGIN, ORIGIN])
    assert told.end(rows=[1, 1])["scalars"]["drift/traj_server"] == close(by_server)


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


def test_counts_and_server_magnitudes(stage: Any) -> None:
    counts = UpdateCounts()
    told = stage([counts])
    for round in range(2):
        told.start([ORIGIN, ORIGIN], ids=[7, 3])
        for sign in (1, 1, -1):
            told.step([ORIGIN, ORIGIN], rows=5)
            told.serve([2.0 * sign, 0, 0], rows=10)
        record = told.end(rows=[15, 15], weights=[1, 3])
        scalars = record["scalars"]
        assert (scalars["count/client_steps"], scalars["count/server_steps"]) == (6, 3)
        assert (scalars["count/samples_main"], scalars["count/samples_server"]) == (30, 30)
        assert scalars["count/client_steps_total"] == 6 * (round + 1)
        assert scalars["count/samples_server_total"] == 30 * (round + 1)
        assert scalars["count/server_per_client"] == 0.5
        assert scalars["count/server_samples_per_step"] == 10
        assert scalars["server/mag_per_step"] == close(2 / 3)
        assert scalars["server/path_per_step"] == close(2.0)
        assert record["clients"]["7"] == {"B": 15, "R": 0, "finished": True, "steps": 3, "w": 0.25}
    again = UpdateCounts()
    again.load_state_dict(counts.state_dict())
    assert again.totals == counts.totals
    assert again.totals["server_steps"] == 6


def test_a_second_visit_in_a_round_has_its_own_key(stage: Any) -> None:
    told = stage([UpdateCounts(), CosineAlignment()])
    told.start([ORIGIN, ORIGIN], ids=[4, 4])
    told.step([[1, 0, 0, 0], [0, 1, 0, 0]])
    record = told.end(rows=[5, 5])
    assert list(record["clients"]) == ["4", "4.1"]
    assert record["scalars"]["align/n_valid"] == 2


def test_traffic(stage: Any) -> None:
    traffic = Traffic()
    told = stage([traffic])
    for round in (1, 2):
        told.start([])
        bytes_by_kind = {("smashed", "up"): 10, ("labels", "up"): 2, ("cut_gradients", "down"): 9}
        scalars = told.end(rows=[], traffic=bytes_by_kind)["scalars"]
        assert scalars == {
            "traffic/smashed_up_bytes": 10, "traffic/labels_up_bytes": 2, "traffic/cut_gradients_down_bytes": 9,
            "traffic/up_bytes": 12, "traffic/down_bytes": 9, "traffic/total_bytes": 21 * round,
        }  # fmt: skip
    again = Traffic()
    again.load_state_dict(traffic.state_dict())
    assert again.total_bytes == 42


@pytest.mark.parametrize("case", ["sfl", "joined", "joined_rescaled", "replay"])
def test_cut_scale_of_the_methods(stage: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sfl.callbacks.cut_scale.PENDING_LIMIT", 60)
    sizes, replayed, steps = [3, 5, 8], 4 if case == "replay" else 0, 3
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(6, 5, generator=draw)
    told = stage([CutScale(), UpdateCounts()])
    told.start([ORIGIN] * 3)
    for _ in range(steps):
        received = torch.randn(16, 6, generator=draw).requires_grad_()
        labels = torch.randint(0, 5, (16,), generator=draw)
        logits = received @ head
        logits.retain_grad()
        losses = cross_entropy(logits, labels, reduction="none").split(sizes)
        divisors = [16] * 3 if case.startswith("joined") else [size + replayed for size in sizes]
        sum(loss.sum() / divisor for loss, divisor in zip(losses, divisors, strict=True)).backward()
        parts = [t.split(sizes) for t in (received.grad, logits, logits.grad, labels)]
        for slot, (raw, seen, gradient, target) in enumerate(zip(*parts, strict=True)):
            sent = 3 * raw if case == "joined_rescaled" else raw
            payload = slot, slot, (raw,), (sent,), seen, gradient, target, sizes[slot], replayed
            told.tell(events.CutGradient, *payload)
    record = told.end(rows=sizes)
    expected = {
        "sfl": [1.0] * 3, "joined": [s / 16 for s in sizes], "joined_rescaled": [3 * s / 16 for s in sizes],
        "replay": [s / (s + 4) for s in sizes],
    }[case]  # fmt: skip
    found = [record["clients"][str(client)]["cut_scale_rel"] for client in range(3)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert record["scalars"]["cut/scale_rel_mean"] == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert record["scalars"]["cut/scale_ratio"] == pytest.approx(max(expected) / min(expected), rel=1e-5)
    assert record["scalars"]["cut/gain_mean"] == pytest.approx(3.0 if case == "joined_rescaled" else 1.0)
    assert record["scalars"]["count/samples_replay"] == 3 * steps * replayed


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
