"""Counts, traffic and the scale at the cut, on rounds told by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_sfl.callbacks import CosineAlignment, CutScale, Traffic, UpdateCounts
from lightning_sfl.core import events

ORIGIN = [0.0] * 4


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def test_counts_and_server_magnitudes(stage: Any) -> None:
    counts = UpdateCounts(server_path=True)
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
        assert scalars["server/mag_per_step_sq"] == close(4 / 3)
        assert scalars["count/samples_synthetic"] == 0
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
        told.tell(events.ClientBackward, ())
        told.step([ORIGIN] * 3, replayed=replayed)
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
