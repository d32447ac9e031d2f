"""Matched dynamics: the scale of the gradient that a client receives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.events import CutGradient
from lightning_sfl.core.mixing import GradMix
from lightning_sfl.measures.cut_scale import effective_denominator
from lightning_sfl.methods import GAS, USFL, MiniBatchSFL, Mix2SFL, SplitMethod
from tests.every_method import CUT_METHODS
from tests.methods.matched import NOT_MIXED, RAGGED, recorded
from tests.tiny import Recorder, build, fit, rows


def measured_scale(event: CutGradient) -> float:
    """1 over what the sum of the client's own rows' losses was divided by, as the gradient that was sent shows it."""
    denominator = effective_denominator(event.logits, event.logits_gradient, event.labels)
    gain = torch.linalg.vector_norm(event.sent[0].double()) / torch.linalg.vector_norm(event.raw[0].double())
    return float(gain) / denominator


@pytest.mark.parametrize("cls", CUT_METHODS)
def test_own_scale_is_the_mean_over_the_own_batch(cls: type[SplitMethod]) -> None:
    told = recorded(cls, matched={"client_scale": "own"}).of(CutGradient)
    assert len(told) > 8
    assert [measured_scale(event) * event.rows for event in told] == pytest.approx([1.0] * len(told), rel=1e-4)


@pytest.mark.parametrize("cls", [cls for cls in CUT_METHODS if cls is not GAS])
def test_joint_scale_is_the_mean_over_the_sweep(cls: type[SplitMethod]) -> None:
    """Ragged clients: a sweep is shared with fewer and fewer."""
    recorder, method = Recorder(), build(cls, batch_size=4, dynamics=Dynamics("joint"), **NOT_MIXED.get(cls, {}))
    fit(method, rows(RAGGED), 1, [recorder])
    plan, seen = method.feed.plan, dict.fromkeys(range(3), 0)
    for event in recorder.of(CutGradient):
        batch = plan.batches[event.slot][seen[event.slot]]
        seen[event.slot] += 1
        together = sum(b.num_rows for own in plan.batches for b in own if b.place == batch.place)
        assert together >= batch.num_rows
        assert measured_scale(event) * together == pytest.approx(1.0, rel=1e-4)
    assert sum(seen.values()) == sum(map(len, plan.batches))


def test_gas_at_joint_scale_counts_the_batches_under_way() -> None:
    told = recorded(GAS, sizes=(8, 8, 8), matched={"client_scale": "joint"}).of(CutGradient)
    assert [measured_scale(event) for event in told] == pytest.approx([1 / 12] * len(told), rel=1e-4)


@pytest.mark.parametrize("cls", CUT_METHODS)
@pytest.mark.parametrize(("scale", "share"), [("own", 1.0), ("joint", 1 / 3)])
def test_the_shipped_measure_agrees(cls: type[SplitMethod], scale: Any, share: float) -> None:
    """`cut/scale_rel_mean` of the default callback, with three equal clients."""
    from lightning_sfl.callbacks import CutScale
    from lightning_sfl.records.report import RoundReport

    watcher = CutScale()
    options = {"batch_size": 4, "dynamics": Dynamics(scale), **NOT_MIXED.get(cls, {})}
    fit(build(cls, **options), rows((8, 8, 8)), 1, [watcher])
    report = RoundReport(0)
    watcher.report(None, report)
    assert report.scalars["cut/scale_rel_mean"] == pytest.approx(share, rel=1e-4)
    assert report.scalars["cut/scale_ratio"] == pytest.approx(1.0, rel=1e-4)


def test_the_scale_of_gradmix_comes_after_the_mix() -> None:
    """The common gradient of the members is the sum of what they would have received."""
    own, mixed = (
        recorded(Mix2SFL, (8, 8, 8), 1, local_epochs=1, matched={"client_scale": "own"}, gradmix=GradMix(phi))
        for phi in (0.0, 1.0)
    )
    alone, common = ([event.sent[0] for event in each.of(CutGradient)][:3] for each in (own, mixed))
    for gradient in common:
        torch.testing.assert_close(gradient, sum(alone[1:], alone[0]))


def test_clients_served_apart_are_rescaled_from_their_own_rows() -> None:
    """MiniBatch-SFL with `separate_forward` answers with the mean over the own batch; joint scale shrinks that."""
    apart = recorded(MiniBatchSFL, (8, 8, 8), matched={"client_scale": "joint"}, separate_forward=True)
    assert [measured_scale(e) for e in apart.of(CutGradient)] == pytest.approx([1 / 12] * 24, rel=1e-4)


def test_what_a_method_scales_itself_is_replaced() -> None:
    plain, scaled = (
        recorded(USFL, matched={"client_scale": "own"}, scale_client_gradient=flag) for flag in (False, True)
    )
    for one, other in zip(plain.of(CutGradient), scaled.of(CutGradient), strict=True):
        torch.testing.assert_close(one.sent[0], other.sent[0])
