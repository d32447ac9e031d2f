"""MultiSFL: branches that last, their master, and replay that reaches the server half only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sfl.core.errors import CheckpointError, ConfigError
from lightning_sfl.core.events import ClientEnd, ClientStep, CutGradient, RoundEnd, ServerStep
from lightning_sfl.core.replay import Replay
from lightning_sfl.methods import SFL, MultiSFL
from tests.equivalence.test_one_client import forked
from tests.tiny import Recorder, Rows, build, differing, fit, furthest, network, rows, sgd, stretches, weights, whole

ALONE = Replay(assistants=0)
MUCH = Replay(proportion=0.5, most=0.5, labels="first_batch")
FORGET = {"persist_client_optimizer": False, "persist_server_optimizer": False}


def skewed(num_clients: int = 4, each: int = 8, dtype: torch.dtype = torch.float32) -> Rows:
    """Client i has only label i mod 4, so every branch lacks what the others have."""
    data = rows((num_clients * each,), dtype=dtype)
    y = torch.arange(num_clients * each) // each % 4
    return Rows(data.population.x, y, stretches([each] * num_clients))


def branches_of(method: Any) -> list[list[dict[str, Tensor]]]:
    return [[weights(half) for half in halves[: method.num_branches]] for halves in (method.slots, method.server_slots)]


def mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}


# --- branches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [{}, {"dropout": 0.2, "norm": True}])
@pytest.mark.parametrize("pull", [0.0, 0.1, 7.0])
def test_one_branch_is_sfl_with_one_participant(net: dict[str, Any], pull: float) -> None:
    options = {"participants": 1, "batch_size": 4, "client_optimizer": sgd(0.1, 0.9), "server_optimizer": sgd(0.1, 0.9)}
    data = (4, 12, 8)
    multi = fit(build(MultiSFL, network(**net), pull=pull, **FORGET, **options), rows(data), 4)
    assert differing(whole(multi), whole(fit(build(SFL, network(**net), **options), rows(data), 4))) == []


def test_branches_go_on_and_the_master_is_their_mean() -> None:
    recorder = Recorder()
    method: Any = build(MultiSFL, network(norm=True, dtype=torch.float64), batch_size=4, pull=0.25)
    fit(method, skewed(dtype=torch.float64), 1, [recorder])
    assert furthest(mean(recorder.ends), {k: v.double() for k, v in weights(method.client_half).items()}) < 1e-12
    for end, branch in zip(recorder.ends, branches_of(method)[0], strict=True):
        for name in ("fc1.weight", "bn1.running_mean"):
            wanted = (end[name] + 0.25 * method.client_half.state_dict()[name]) / 1.25
            torch.testing.assert_close(branch[name], wanted, rtol=0, atol=1e-14)
    for half, states in zip((method.client_half, method.server_half), branches_of(method), strict=True):
        assert furthest(mean(states), {k: v.double() for k, v in weights(half).items()}) < 1e-12


def test_starts_differ_from_the_second_round_on_and_follow_the_ends() -> None:
    recorder = Recorder()
    fit(build(MultiSFL, batch_size=4, pull=0.0, client_order="sorted"), skewed(), 2, [recorder])
    first, second = recorder.starts[:4], recorder.starts[4:]
    assert all(differing(first[0], other) == [] for other in first)
    assert differing(second[0], second[1]) != []
    for end, start in zip(recorder.ends[:4], second, strict=True):
        assert differing(end, start) == []


def test_branches_that_meet_the_same_stay_the_same() -> None:
    one = skewed(dtype=torch.float64).population
    same = Rows(one.x[:8].repeat(3, 1), one.y[:8].repeat(3), stretches([8] * 3))
    method: Any = build(MultiSFL, network(dtype=torch.float64), batch_size=None, pull=0.1)
    fit(method, same, 3)
    for half, states in zip((method.client_half, method.server_half), branches_of(method), strict=True):
        assert max(furthest(state, weights(half)) for state in states) < 1e-12


def test_more_branches_than_participants_share_clients_and_their_rows() -> None:
    recorder = Recorder()
    method: Any = build(MultiSFL, branches=5, participants=2, batch_size=4, client_order="selected")
    fit(method, rows((8, 8, 8)), 1, [recorder])
    visits = [event.client_id for event in recorder.of(ClientEnd)]
    assert len(visits) == 5
    assert visits[0] == visits[2] == visits[4] != visits[1] == visits[3]
    batches = [set(batch.rows) for batch in method.feed.plan.batches[0] + method.feed.plan.batches[2]]
    assert batches[0] | batches[1] == batches[2] | batches[3] == set(method.population.rows[visits[0]])


def test_fewer_branches_leave_participants_out() -> None:
    recorder = Recorder()
    fit(build(MultiSFL, branches=2, participants=3, batch_size=4), skewed(), 1, [recorder])
    assert len(recorder.of(ClientEnd)) == 2


@pytest.mark.parametrize(("size", "batch_size", "passes", "steps"), [(13, 5, 5, 10), (3, 5, 5, 5), (10, 5, 1, 2)])
def test_steps_leave_out_short_batches(size: int, batch_size: int, passes: int, steps: int) -> None:
    recorder = Recorder()
    fit(build(MultiSFL, batch_size=batch_size, local_epochs=passes), rows((size, size, size)), 1, [recorder])
    assert recorder.count(ServerStep) == 3 * steps
    assert [event.steps for event in recorder.of(ClientEnd)] == [steps] * 3
    assert sum(len(event.turns) for event in recorder.of(ClientStep)) == 3 * steps


# --- replay -----------------------------------------------------------------------------------------------------------


def replaying(replay: Replay = MUCH, rounds: int = 1, participants: int = 2, **options: Any) -> tuple[Any, Recorder]:
    recorder = Recorder()
    method = build(MultiSFL, options.pop("net", None), replay=replay, participants=participants, batch_size=4,
                   client_order="sorted", **{"seed": 1, **options})  # fmt: skip
    fit(method, skewed(8), rounds, [recorder])
    return method, recorder


def test_replayed_rows_join_the_servers_batch_and_scale_the_cut_gradient() -> None:
    method, recorder = replaying()
    steps, cuts = recorder.of(ServerStep), recorder.of(CutGradient)
    told = recorder.of(RoundEnd)[0].scalars
    assert [event.replayed > 0 for event in cuts] == [True, True, False, False]
    assert sum(event.replayed for event in cuts) == told["replay/rows_collected"] > 0
    assert sorted(event.rows for event in steps) == sorted(event.rows + event.replayed for event in cuts)
    for event in cuts:
        residual = event.logits.softmax(-1) - torch.nn.functional.one_hot(event.labels, 4)
        denominator = residual.norm() / event.logits_gradient.norm()
        assert denominator.item() == pytest.approx(event.rows + event.replayed, rel=1e-5)
        assert event.rows == len(event.logits) == 4
    helpers = {client for event in steps for client in event.client_ids} - set(method.feed.plan.participants)
    assert helpers


def test_replay_scales_the_clients_gradient_and_never_moves_the_client_half() -> None:
    """The first step only: whatever assistants hold, the client half takes B / (B + R) of its own gradient."""
    moves = []
    for replay in (ALONE, MUCH):
        _, recorder = replaying(replay, local_steps=1, net=network(dtype=torch.float32))
        replayed = [event.replayed for event in recorder.of(CutGradient)]
        moves.append(
            [end["fc1.weight"] - start["fc1.weight"] for start, end in zip(recorder.starts, recorder.ends, strict=True)]
        )
    for own, mixed, count in zip(*moves, replayed, strict=True):
        assert count > 0
        torch.testing.assert_close(mixed, own * 4 / (4 + count), rtol=1e-4, atol=1e-7)


def test_two_tensors_at_the_cut_are_replayed_too() -> None:
    recorder = Recorder()
    fit(build(MultiSFL, forked(), "lower", replay=MUCH, participants=2, batch_size=4), skewed(), 1, [recorder])
    cuts = recorder.of(CutGradient)
    assert {len(event.sent) for event in cuts} == {2}
    assert sum(event.replayed for event in cuts) > 0
    assert sum(event.rows for event in recorder.of(ServerStep)) == sum(e.rows + e.replayed for e in cuts)


def test_spread_replay_reaches_every_step() -> None:
    _, recorder = replaying(Replay(proportion=0.5, most=0.5, placement="spread"), local_epochs=2)
    counts = [event.replayed for event in recorder.of(CutGradient) if event.slot == 1]
    assert counts == [2, 2, 2, 2]


def test_traffic_counts_the_assistants() -> None:
    _, alone = replaying(ALONE)
    method, recorder = replaying()
    more = {key: size - alone.traffic_bytes[0][key] for key, size in recorder.traffic_bytes[0].items()}
    count = sum(event.replayed for event in recorder.of(CutGradient))
    assert more[("smashed", "up")] == count * 8 * 4
    assert more[("labels", "up")] == count * 8
    assert more[("weights", "down")] == sum(map(len, method.desk.found.values())) * 4 * (6 * 8 + 8)
    assert more[("cut_gradients", "down")] == more[("weights", "up")] == 0


@pytest.mark.parametrize("replay", [MUCH, ALONE])
def test_forward_modes_agree_without_batch_norm(replay: Replay) -> None:
    plain = whole(replaying(replay, 2)[0])
    assert differing(plain, whole(replaying(replay, 2, client_forward="double_eval")[0])) == []
    assert furthest(plain, whole(replaying(replay, 2, server_forward="separate")[0])) < 1e-6
    for option in ({"client_forward": "double_eval"}, {"server_forward": "separate"}):
        nets = [network(norm=True) for _ in range(2)]
        normed = [whole(replaying(MUCH, 2, net=net, **o)[0]) for net, o in zip(nets, ({}, option), strict=True)]
        assert differing(*normed) != []


def test_the_proportion_follows_the_servers_gradients() -> None:
    squares: list[float] = []

    class Squares(Recorder):
        def on_server_step(self, module: Any, event: ServerStep) -> None:
            squares.append(sum(p.grad.square().sum().item() for p in event.server_half.parameters()))

        def on_round_end(self, module: Any, event: RoundEnd) -> None:
            told.append(event.scalars)

    told: list[dict[str, float]] = []
    fit(build(MultiSFL, participants=2, batch_size=4, local_steps=3), skewed(), 3, [Squares()])
    norms = [0.1 * sum(squares[6 * r : 6 * r + 6]) / 6 for r in range(3)]
    assert [-scalars["replay/fgn"] for scalars in told] == pytest.approx(norms, rel=1e-5)
    later = min(max(0.01 * norms[1] / norms[0], 0.01), 0.5)
    assert [scalars["replay/proportion"] for scalars in told] == pytest.approx([0.01, 0.01, later])


def test_everybody_busy_means_no_replay() -> None:
    _, recorder = replaying(participants=8)
    assert sum(event.replayed for event in recorder.of(CutGradient)) == 0
    _, asked = replaying(Replay(proportion=0.5, most=0.5, pool="all_but_own"), participants=8)
    assert sum(event.replayed for event in asked.of(CutGradient)) > 0


def test_rows_with_several_labels_are_refused() -> None:
    data = rows((8, 8))
    data.population = Rows(data.population.x, data.population.y[:, None].repeat(1, 3), stretches([8, 8])).population
    with pytest.raises(ConfigError, match=r"replay.assistants=20 is not allowed: 0 where every row"):
        fit(build(MultiSFL), data)


@pytest.mark.parametrize(("key", "value"), [("branches", 0), ("pull", -0.1), ("pull", float("inf"))])
def test_ranges(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r} is not allowed: "):
        build(MultiSFL, **{key: value})


# --- resume -----------------------------------------------------------------------------------------------------------


def test_memory_survives_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    options = {"participants": 3, "batch_size": 4, "replay": MUCH, "client_optimizer": sgd(0.1, 0.9)}
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    straight: Any = build(MultiSFL, network(0.2, norm=True), **options)
    fit(straight, skewed(), 4, [keep], enable_checkpointing=True)
    resumed: Any = build(MultiSFL, network(0.2, norm=True), **options)
    again = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(resumed, skewed(), 4, [again], resume=tmp_path / "epoch=1.ckpt", enable_checkpointing=True)
    for one, other in zip(branches_of(straight), branches_of(resumed), strict=True):
        assert [differing(a, b) for a, b in zip(one, other, strict=True)] == [[]] * 3
    assert straight.desk.proportions.state() == resumed.desk.proportions.state()
    assert torch.equal(straight.desk.scores.state()["sums"], resumed.desk.scores.state()["sums"])
    with pytest.raises(CheckpointError, match="has branches=3, this run branches=2"):
        fit(build(MultiSFL, network(0.2, norm=True), **{**options, "participants": 2}), skewed(), 4,
            resume=tmp_path / "epoch=1.ckpt")  # fmt: skip
