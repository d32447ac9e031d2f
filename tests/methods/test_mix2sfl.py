"""Mix2SFL: mixed losses reach the server only, and members of a drawn set get one gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sfl.core.events import ClientEnd, CutGradient, ServerBackward, ServerStep
from lightning_sfl.core.mixing import GradMix, SmashMix
from lightning_sfl.methods import Mix2SFL, SplitMethod
from tests.methods.toy import labelled, toy
from tests.tiny import Recorder, Rows, differing, fit, network, rows, sgd, weights

NO_SMASHMIX, NO_GRADMIX = SmashMix(ratio=0.0), GradMix(phi=0.0)
OFF: dict[str, Any] = {"smashmix": NO_SMASHMIX, "gradmix": NO_GRADMIX}


class Seen(Recorder):
    """Backward passes, and the server's gradients before its step."""

    def __init__(self) -> None:
        super().__init__()
        self.backwards = 0
        self.server: list[list[Tensor]] = []

    def on_before_backward(self, *arguments: Any) -> None:
        self.backwards += 1

    def on_server_backward(self, module: SplitMethod, event: ServerBackward) -> None:
        self.events.append(event)
        self.server.append([p.grad.clone() for p in event.server_half.parameters()])


def run(data: Rows, net: Any = None, cut_layer: str = "relu1", rounds: int = 1, **options: Any) -> Seen:
    seen = Seen()
    fit(Mix2SFL(net or network(), cut_layer, **options), data, rounds, [seen])
    return seen


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_an_epoch_is_as_long_as_the_largest_client_without_its_last_short_batch() -> None:
    seen = run(rows((5, 4, 9)), batch_size=4, local_epochs=2)
    assert [event.client_ids for event in seen.of(ServerStep)] == [(0, 1, 2), (0, 2)] * 2
    assert [event.rows for event in seen.of(ServerStep)] == [12, 5] * 2
    assert {event.client_id: (event.steps, event.rows, event.weight) for event in seen.of(ClientEnd)} == {
        0: (4, 10, 10), 1: (2, 8, 8), 2: (4, 16, 16),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "options", "joint_rows"),
    [
        ((3, 2), {"batch_size": 4}, [5]),
        ((7, 4), {"batch_size": 4}, [8]),
        ((7, 4), {"batch_size": None}, [11]),
        ((8, 4), {"batch_size": 4, "local_steps": 3}, [8, 4, 8]),
    ],
)
def test_short_clients(sizes: tuple[int, ...], options: dict[str, Any], joint_rows: list[int]) -> None:
    assert [event.rows for event in run(rows(sizes), **options).of(ServerStep)] == joint_rows


# --- SmashMix ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "partners"), [(0.0, 0), (0.2, 1), (0.5, 2), (1.0, 4)])
def test_backward_passes(ratio: float, partners: int) -> None:
    """One for the joint loss, one for each pair, and one through all client halves."""
    seen = run(rows((4,) * 5), batch_size=4, smashmix=SmashMix(ratio=ratio))
    assert seen.backwards == 1 + 5 * partners + 1
    assert seen.count(ServerStep) == 1


def test_clients_do_not_notice() -> None:
    """Bit for bit, until the server has moved."""
    on, off = (run(rows((4,) * 5), batch_size=4, smashmix=mix) for mix in (SmashMix(ratio=0.5), NO_SMASHMIX))
    for one, other in zip(on.of(CutGradient), off.of(CutGradient), strict=True):
        assert torch.equal(one.raw[0], other.raw[0])
        assert torch.equal(one.sent[0], other.sent[0])
    assert [differing(a, b) for a, b in zip(on.ends, off.ends, strict=True)] == [[]] * 5
    assert not torch.equal(on.server[0][0], off.server[0][0])


@pytest.mark.parametrize(("pair", "wanted"), [((0, 1), (0.25, -0.25)), ((1, 0), (-0.25, 0.25))])
@pytest.mark.parametrize("options", [{}, {"loss_weight": 2.0}, {"normalize": True}])
def test_what_a_pair_adds(
    pair: tuple[int, int], wanted: tuple[float, float], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero logits, labels 0 and 1: the joint gradient is zero, and a quarter of one label leaves (1/4, -1/4)."""
    monkeypatch.setattr(SmashMix, "draw", lambda self, sizes, rng: [(*pair, 0.25)] * 2)
    seen = run(labelled([0], [1]), toy(), "lower", batch_size=None, smashmix=SmashMix(**options))
    factor = {"loss_weight": 4.0, "normalize": 1.0}.get(next(iter(options), ""), 2.0)
    assert seen.server[0][0].tolist() == [factor * value for value in wanted]


def test_a_mix_of_nothing_else_is_the_clients_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmashMix, "draw", lambda self, sizes, rng: [(0, 1, 1.0)])
    alone = run(rows((4, 4)), batch_size=4, smashmix=SmashMix()).server[0]
    monkeypatch.undo()
    joint = run(rows((4, 4)), batch_size=4, smashmix=NO_SMASHMIX).server[0]
    population = rows((4, 4)).population
    own = run(Rows(population.x, population.y, [range(4)]), batch_size=4).server[0]
    for with_mix, without, mean in zip(alone, joint, own, strict=True):
        torch.testing.assert_close(with_mix - without, mean)


@pytest.mark.parametrize(("update", "forwards"), [(True, 1 + 5 * 2), (False, 1)])
def test_batch_norm_of_mixed_data(update: bool, forwards: int) -> None:
    method = Mix2SFL(network(norm=True), "relu1", batch_size=4, smashmix=SmashMix(ratio=0.5, update_bn=update))
    fit(method, rows((4,) * 5))
    assert method.server_half.state_dict()["bn2.num_batches_tracked"].item() == forwards
    without = Mix2SFL(network(norm=True), "relu1", batch_size=4, smashmix=NO_SMASHMIX)
    fit(without, rows((4,) * 5))
    same = "bn2.running_mean" not in differing(weights(method.server_half), weights(without.server_half))
    assert same != update


# --- GradMix ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_everybody_a_member(reduce: Any) -> None:
    """The sum over all clients of slices of scale 1/S is the mean of their own-batch gradients."""
    seen = run(rows((4, 4, 4)), batch_size=4, smashmix=NO_SMASHMIX, gradmix=GradMix(phi=1.0, reduce=reduce))
    events = seen.of(CutGradient)
    own_means = torch.stack([event.raw[0] * 12 / 4 for event in events])
    wanted = own_means.mean(dim=0) / (1 if reduce == "sum" else 3)
    for event in events:
        torch.testing.assert_close(event.sent[0], wanted)
        assert torch.equal(event.sent[0], events[0].sent[0])


def changed(events: list[CutGradient]) -> list[int]:
    return [event.client_id for event in events if not torch.equal(event.sent[0], event.raw[0])]


@pytest.mark.parametrize(("clients", "phi", "members"), [(10, 0.5, 5), (4, 0.5, 2), (3, 0.5, 0), (6, 0.0, 0)])
def test_number_of_members(clients: int, phi: float, members: int) -> None:
    seen = run(rows((4,) * clients), batch_size=4, smashmix=NO_SMASHMIX, gradmix=GradMix(phi=phi))
    events = seen.of(CutGradient)
    assert len(changed(events)) == members
    received = {tuple(e.sent[0].flatten().tolist()) for e in events if e.client_id in changed(events)}
    assert len(received) == min(members, 1)


@pytest.mark.parametrize(("members", "sets"), [("each_round", 1), ("each_step", 2)])
def test_members_are_drawn_each_step_or_each_round(members: Any, sets: int) -> None:
    seen = run(rows((24,) * 6), rounds=3, batch_size=4, local_epochs=1, smashmix=NO_SMASHMIX,
               gradmix=GradMix(members=members))  # fmt: skip
    events = seen.of(CutGradient)
    steps = [tuple(changed(events[start : start + 6])) for start in range(0, len(events), 6)]
    in_rounds = [set(steps[start : start + 6]) for start in range(0, 18, 6)]
    assert all(len(drawn) >= sets for drawn in in_rounds)
    assert sets > 1 or all(len(drawn) == 1 for drawn in in_rounds)
    assert len(set(steps)) > 1


def test_a_member_of_another_size_keeps_its_own() -> None:
    seen = run(rows((4, 2, 4, 2)), batch_size=4, smashmix=NO_SMASHMIX, gradmix=GradMix(phi=1.0))
    assert len(changed(seen.of(CutGradient))) == 2


def test_both_off_is_the_slice_of_the_joint_gradient() -> None:
    seen = run(rows((5, 4, 9)), batch_size=4, server_optimizer=sgd(0.0), **OFF)
    assert all(torch.equal(event.sent[0], event.raw[0]) for event in seen.of(CutGradient))
