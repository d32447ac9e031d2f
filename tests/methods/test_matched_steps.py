"""Matched dynamics: how often the server steps, and along which gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.events import ClientStep, CutGradient, RoundEnd, ServerBackward, ServerStep
from lightning_sfl.core.replay import Replay
from lightning_sfl.methods import GAS, SFL, SFLV2, USFL, MiniBatchSFL, Mix2SFL, MultiSFL, SplitLearning, SplitMethod
from tests.every_method import CUT_METHODS
from tests.methods.matched import COPIES, NOT_MIXED, RAGGED, recorded
from tests.tiny import Recorder, build, fit, network, rows, sgd


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
        return  # its rows come in the order of arrival; the count is tested above, the mean in test_gas_server
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
