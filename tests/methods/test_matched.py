"""Matched dynamics, method by method: what clients receive, how often the server steps and along which gradient."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import (
    ClientEnd,
    ClientStart,
    ClientStep,
    CutGradient,
    RoundEnd,
    ServerBackward,
    ServerStep,
)
from lightning_sfl.core.mixing import GradMix, SmashMix
from lightning_sfl.core.replay import Replay
from lightning_sfl.measures.cut_scale import effective_denominator
from lightning_sfl.methods import (
    GAS,
    SFL,
    SFLV1,
    SFLV2,
    USFL,
    MiniBatchSFL,
    Mix2SFL,
    MultiSFL,
    SplitLearning,
    SplitMethod,
)
from tests.tiny import (
    ASYNCHRONOUS,
    CUT_METHODS,
    METHODS,
    Recorder,
    build,
    differing,
    fit,
    network,
    rich_of,
    rows,
    sgd,
    weights,
    whole,
)

UNCUT = [cls for cls in METHODS if cls not in CUT_METHODS]
COPIES = (SFLV1, MultiSFL)
NOT_MIXED: dict[type[SplitMethod], dict[str, Any]] = {
    Mix2SFL: {"smashmix": SmashMix(ratio=0.0), "gradmix": GradMix(phi=0.0)},
    MultiSFL: {"replay": Replay(proportion=0.5, most=0.9)},
    USFL: {"scale_client_gradient": True},
}
RAGGED = (5, 4, 9)


def recorded(cls: type[SplitMethod], sizes: tuple[int, ...] = RAGGED, rounds: int = 2, **options: Any) -> Recorder:
    recorder, matched = Recorder(), options.pop("matched", {})
    options = {"batch_size": 4, "local_epochs": 2, **NOT_MIXED.get(cls, {}), **options}
    fit(build(cls, dynamics=Dynamics(**matched), **options), rows(sizes), rounds, [recorder])
    return recorder


# --- the scale of what a client receives ------------------------------------------------------------------------------


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


# --- steps of the server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CUT_METHODS)
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_so_many_steps_in_every_round(cls: type[SplitMethod], steps: int) -> None:
    sizes = (8, 8, 8)
    recorder, free = (recorded(cls, sizes, matched=matched) for matched in ({"server_steps": steps}, {}))
    copies = 3 if cls in COPIES else 1
    for index in range(2):
        assert len([e for e in recorder.of(ServerStep) if e.round == index]) == steps * copies
    assert recorder.count(ClientStep) == free.count(ClientStep) > 0
    assert len(recorder.of(CutGradient)) == len(free.of(CutGradient))
    if cls not in (GAS, MultiSFL):  # generated or replayed rows besides
        assert sum(event.rows for event in recorder.of(ServerStep)) == 2 * 2 * sum(sizes)


def test_runs_are_consecutive_uploads_of_equal_number() -> None:
    def clients(cls: type[SplitMethod], steps: int) -> list[tuple[int, ...]]:
        found = recorded(cls, (8, 8, 8), 1, local_epochs=1, matched={"server_steps": steps})
        return [event.client_ids for event in found.of(ServerStep)]

    for cls in (SFL, MiniBatchSFL, USFL, Mix2SFL):
        assert clients(cls, 2) == [(0, 1, 2), (0, 1, 2)]
        assert clients(cls, 3) == [(0, 1), (2, 0), (1, 2)]
        assert clients(cls, 6) == [(0,), (1,), (2,), (0,), (1,), (2,)]
    for cls in (SFLV2, SplitLearning):
        assert clients(cls, 3) == [(0, 0), (1, 1), (2, 2)]
        assert clients(cls, 1) == [(0, 0, 1, 1, 2, 2)]
    for cls in COPIES:
        assert sorted(clients(cls, 1)) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("cls", CUT_METHODS)
def test_more_steps_than_uploads_are_not_taken_and_that_is_recorded(cls: type[SplitMethod]) -> None:
    recorder = recorded(cls, rounds=1, matched={"server_steps": 50})
    (end,) = recorder.of(RoundEnd)
    copies = 3 if cls in COPIES else 1
    assert end.scalars["dynamics/server_steps_asked"] == 50 * copies
    assert end.scalars["dynamics/server_steps_missing"] == 50 * copies - recorder.count(ServerStep)
    assert recorder.count(ServerStep) == len(recorder.of(CutGradient))
    assert not [tag for tag in recorded(cls, rounds=1).of(RoundEnd)[0].scalars if tag.startswith("dynamics/")]


class Gradients(Recorder):
    """Gradients of the server half right before each of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[Tensor]] = []

    def on_server_backward(self, module: SplitMethod, event: ServerBackward) -> None:
        self.found.append([p.grad.clone() for p in event.server_half.parameters()])


@pytest.mark.parametrize("cls", CUT_METHODS)
def test_the_step_follows_the_mean_loss_over_all_rows_of_the_run(cls: type[SplitMethod]) -> None:
    """With halves that do not move, so that smashed data can be made again, against autograd on the joined rows."""
    still = {"client_optimizer": sgd(0.0), "server_optimizer": sgd(0.0)}
    seen, data = Gradients(), rows(RAGGED, dtype=torch.float64)
    replay = {"replay": Replay(assistants=0)} if cls is MultiSFL else {}
    mixes = {} if cls is USFL else NOT_MIXED.get(cls, {})
    net = network(dtype=torch.float64)
    options = {"batch_size": 4, "dynamics": Dynamics(server_steps=1), **still, **mixes, **replay}
    method = fit(build(cls, net, **options), data, 1, [seen])
    steps = seen.of(ServerStep)
    assert len(steps) == (3 if cls in COPIES else 1)
    if cls is GAS:
        return  # its rows come in the order of arrival; the count is tested above, the mean in tests/methods/test_gas
    plan = method.feed.plan
    for step, gradients in zip(steps, seen.found, strict=True):
        batches = [b for own in plan.batches for b in own if cls not in COPIES or b.slot == step.branch]
        x, y = data.population.take(torch.cat([torch.from_numpy(b.rows) for b in batches]).numpy())
        loss = method.loss(method(x), y)
        wanted = torch.autograd.grad(loss, list(method.server_half.parameters()))
        for one, other in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_gas_step_is_over_everything_that_arrived_since_the_last() -> None:
    """Equal halves, nothing generated: the plain mean over the buffer, whose rows the events name."""
    recorder = recorded(GAS, matched={"server_steps": 2})
    for index in range(2):
        steps = [event for event in recorder.of(ServerStep) if event.round == index]
        arrived = [event for event in recorder.of(CutGradient) if event.round == index]
        # a buffer's step comes before its last client's cut gradient is told
        assert [c for event in steps for c in event.client_ids] == [event.client_id for event in arrived]
        assert sum(event.rows for event in steps) == sum(event.rows for event in arrived)
        lengths = [len(event.client_ids) for event in steps]
        assert max(lengths) - min(lengths) <= 1


# --- where clients start ----------------------------------------------------------------------------------------------


class Starts(Recorder):
    """The merged client half at the start of each round, and as it is when each client starts."""

    def __init__(self) -> None:
        super().__init__()
        self.merged: list[dict[str, Tensor]] = []
        self.then: list[dict[str, Tensor]] = []

    def on_round_start(self, module: SplitMethod, event: Any) -> None:
        self.merged.append(weights(event.client_half))

    def on_client_start(self, module: SplitMethod, event: ClientStart) -> None:
        super().on_client_start(module, event)
        self.then.append(weights(module.client_half))


def starts(cls: type[SplitMethod], **matched: Any) -> list[bool]:
    """Whether each client of three rounds started from the merged half."""
    seen = Starts()
    options = {"batch_size": 4, "client_optimizer": sgd(0.1, 0.9), "participants": 3, **rich_of(cls)}
    fit(build(cls, network(norm=True), dynamics=Dynamics(**matched), **options), rows((5, 4, 9, 6)), 3, [seen])
    return [differing(*each) == [] for each in zip(seen.starts, seen.then, strict=True)]


@pytest.mark.parametrize("cls", METHODS)
def test_everybody_starts_from_the_merged_half(cls: type[SplitMethod]) -> None:
    assert all(starts(cls, start="merged"))
    assert all(starts(cls)) is (cls not in (SplitLearning, MultiSFL, *ASYNCHRONOUS))


def test_a_branch_starts_with_both_its_halves_from_the_master() -> None:
    found: list[list[str]] = []

    class Servers(L.Callback):
        def on_client_start(self, module: SplitMethod, event: ClientStart) -> None:
            found.append(differing(weights(event.server_half), weights(module.server_half)))

    fit(build(MultiSFL, batch_size=4, dynamics=Dynamics(start="merged")), rows(), 3, [Servers()])
    assert found == [[]] * 9


def test_who_is_brought_back_is_sent_the_weights_again() -> None:
    """A client that stays in its slot over the end of a round gets the merged half, which costs a transfer."""
    free, matched = (
        recorded(GAS, (9, 9, 9, 9, 9), 4, participants=3, model_buffer=1, matched=m) for m in ({}, {"start": "merged"})
    )
    moved = [sum(t["weights", "down"] for t in each.traffic_bytes) for each in (free, matched)]
    half = 4 * (6 * 8 + 8)
    stayed = len(matched.of(ClientStart)) - moved[0] // half
    assert stayed > 0
    assert moved[1] - moved[0] == stayed * half


def test_who_is_brought_back_keeps_the_layers_of_its_own() -> None:
    """Batch-norm layers that a client has for itself are as it left them; the rest is the merged half."""
    seen, options = Starts(), {"participants": 3, "model_buffer": 1, "bn_buffers": "local", "batch_size": 4}
    method = build(GAS, network(norm=True), dynamics=Dynamics(start="merged"), **options)
    fit(method, rows((9, 9, 9, 9, 9)), 4, [seen])
    left = {(e.round, e.client_id): end for e, end in zip(seen.of(ClientEnd), seen.ends, strict=True) if not e.finished}
    stayed = 0
    for event, start in zip(seen.of(ClientStart), seen.starts, strict=True):
        before = left.get((event.round - 1, event.client_id))
        if before is not None:
            stayed += 1
            own = {name for name in start if "bn1" in name}
            assert not own & {*differing(start, before)}
            assert {*differing(start, seen.merged[event.round])} <= own
    assert stayed > 2


# --- what has no meaning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", UNCUT)
@pytest.mark.parametrize("matched", [{"client_scale": "own"}, {"server_steps": 3}])
def test_methods_without_a_server_refuse_in_one_line(cls: type[SplitMethod], matched: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(cls, dynamics=Dynamics(**matched))
    ((key, value),) = matched.items()
    left = getattr(Dynamics(), key)
    assert str(refusal.value) == (
        f"dynamics.{key}={value!r} is not allowed: only {left}: in {cls.__name__} no server answers uploads, "
        "so there is nothing to match"
    )


@pytest.mark.parametrize("cls", METHODS)
def test_left_to_the_method_nothing_changes(cls: type[SplitMethod]) -> None:
    def trained(**options: Any) -> dict[str, Tensor]:
        return whole(fit(build(cls, batch_size=4, participants=3, **options, **rich_of(cls)), rows(), 2))

    assert differing(trained(), trained(dynamics=Dynamics())) == []
