"""GAS: its limits, arrivals and visits, and what survives a checkpoint; three clients unless said otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, ClientStart, ClientStep, CutGradient, RoundEnd, RoundStart, ServerStep
from lightning_sfl.core.selection import FixedSchedule
from lightning_sfl.methods import GAS, SFL, MiniBatchSFL, SplitMethod
from tests.methods.gas_runs import EQUAL, OFF, SIZES, SPREAD, SYNCHRONOUS, WHOLE, run
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, weights, whole

# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [{}, {"dropout": 0.2, "norm": True}])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_slot_is_split_learning(net: dict[str, Any], momentum: float) -> None:
    """A client's step at the old server half, then the server's step on the same batch."""
    common = {"participants": 1, "batch_size": 4, "local_epochs": 2, "persist_server_optimizer": False,
              "client_optimizer": sgd(0.1, momentum), "server_optimizer": sgd(0.1, momentum)}  # fmt: skip
    gas, _ = run(4, (7, 9, 5), network(**net, dtype=torch.float64), **SYNCHRONOUS, **common)
    sfl = fit(build(SFL, network(**net, dtype=torch.float64), **common), rows((7, 9, 5), dtype=torch.float64), 4)
    assert furthest(whole(gas), whole(sfl)) < 1e-12


@pytest.mark.parametrize("arrival", ["clock", "random"])
def test_one_slot_and_one_client_do_not_depend_on_the_clock(arrival: str) -> None:
    options = {"participants": 1, "batch_size": None, "prior_exponent": 0.0, "generation": OFF}
    gas, _ = run(3, (6,), network(dtype=torch.float64), arrival=arrival, **options)
    sfl = fit(build(SFL, network(dtype=torch.float64), batch_size=None), rows((6,), dtype=torch.float64), 3)
    assert furthest(whole(gas), whole(sfl)) < 1e-12


def test_equal_speeds_and_a_full_buffer_are_minibatch_sfl() -> None:
    common = {"participants": 3, "batch_size": 4, "local_epochs": 2, "persist_server_optimizer": False,
              "client_optimizer": sgd(0.1, 0.9), "server_optimizer": sgd(0.1, 0.9)}  # fmt: skip
    gas, recorder = run(3, net=network(dtype=torch.float64), cell=EQUAL, weighting="samples", **SYNCHRONOUS, **common)
    joint = fit(build(MiniBatchSFL, network(dtype=torch.float64), **common), rows(SIZES, dtype=torch.float64), 3)
    assert furthest(whole(gas), whole(joint)) < 1e-12
    assert recorder.count(ServerStep) == 3 * 4


def test_a_buffer_that_never_fills_leaves_the_server_half() -> None:
    """Clients then train as SFL's do against a server half whose rate is zero."""
    gas, recorder = run(3, net=network(dtype=torch.float64), activation_buffer=10**6, **SYNCHRONOUS)
    still = build(SFL, network(dtype=torch.float64), participants=3, batch_size=4, weighting="uniform",
                  server_optimizer=sgd(0.0))  # fmt: skip
    fit(still, rows(SIZES, dtype=torch.float64), 3)
    assert recorder.count(ServerStep) == 0
    assert furthest(whole(gas), whole(still)) < 1e-12


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_counts() -> None:
    method, recorder = run(6, local_steps=3)
    arrivals = recorder.count(ClientStep)
    assert recorder.count(CutGradient) == arrivals == method.visits.counts["arrivals"]
    assert recorder.count(ServerStep) == arrivals // 3 == method.progress.server_steps
    finished = [event for event in recorder.of(ClientEnd) if event.finished]
    assert len(finished) == 6 * 3
    left = sum(visit.done for visit in method.visits.in_slot.values())
    assert arrivals == 3 * len(finished) + left
    assert all(len(event.client_ids) == 3 for event in recorder.of(ServerStep))
    assert any(len(set(event.client_ids)) < 3 for event in recorder.of(ServerStep))


def test_every_occupied_slot_starts_and_ends_in_every_round() -> None:
    _, recorder = run(4, local_steps=3)
    for index in range(4):
        story = [event for event in recorder.events if event.round == index]
        starts = [(e.slot, e.client_id) for e in story if isinstance(e, ClientStart)]
        ends = [(e.slot, e.client_id) for e in story if isinstance(e, ClientEnd)]
        assert sorted(starts) == sorted(ends)
        (begin,) = [e for e in story if isinstance(e, RoundStart)]
        assert [client for _, client in starts[:3]] == list(begin.participants)
        assert sum(e.finished for e in story if isinstance(e, ClientEnd)) == 3
        steps = sum(len(e.turns) for e in story if isinstance(e, ClientStep))
        assert sum(e.steps for e in story if isinstance(e, ClientEnd)) == steps
        assert len({client for _, client in starts[:3]}) == 3


def test_who_goes_on_stands_where_it_was_and_newcomers_get_the_global_half() -> None:
    class Globals(Recorder):
        def on_round_start(self, module: SplitMethod, event: RoundStart) -> None:
            before.append(weights(event.client_half))
            super()._keep(module, event)

    before: list[dict[str, Tensor]] = []
    recorder = Globals()
    fit(build(GAS, participants=3, batch_size=4, cell=SPREAD, local_steps=3), rows(SIZES), 4, [recorder])
    starts = list(zip(recorder.of(ClientStart), recorder.starts, strict=True))
    ends = list(zip(recorder.of(ClientEnd), recorder.ends, strict=True))
    carried = 0
    for event, start in starts:
        previous = [end for e, end in ends if e.round == event.round - 1 and e.slot == event.slot and not e.finished]
        if previous and event.slot not in [
            e.slot for e, _ in starts[: starts_index(starts, event)] if e.round == event.round
        ]:
            assert differing(previous[0], start) == []
            carried += 1
        else:
            assert differing(before[event.round], start) == []
    assert carried > 3


def starts_index(starts: list[Any], event: ClientStart) -> int:
    return next(i for i, (each, _) in enumerate(starts) if each is event)


def test_the_merge_is_the_mean_of_what_was_handed_in() -> None:
    recorder = Recorder()
    method: Any = build(
        GAS, network(dtype=torch.float64), participants=3, batch_size=4, weighting="samples", cell=SPREAD
    )
    fit(method, rows((4, 8, 12, 8), dtype=torch.float64), 1, [recorder])
    ends = [(e, s) for e, s in zip(recorder.of(ClientEnd), recorder.ends, strict=True) if e.finished]
    total = sum(event.weight for event, _ in ends)
    for name, merged in weights(method.client_half).items():
        wanted = sum(state[name] * (event.weight / total) for event, state in ends)
        torch.testing.assert_close(merged, wanted, rtol=0, atol=1e-14)
    assert {event.weight for event, _ in ends} <= {4.0, 8.0, 12.0}


def test_time_goes_on_and_is_told() -> None:
    method, recorder = run(5)
    times = [event.scalars["clock/sim_time_s"] for event in recorder.of(RoundEnd)]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] == method.visits.finished_s
    assert len(set(times)) > 3


def test_a_round_of_all_participants_reads_the_schedule(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    path.write_text("[[0, 1], [2, 3, 4], [1]]")
    _, recorder = run(3, selection=FixedSchedule(str(path)), participation="per_round")
    ended = [(event.round, event.client_id) for event in recorder.of(ClientEnd)]
    assert sorted(ended) == [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4), (2, 1)]
    assert all(event.finished for event in recorder.of(ClientEnd))
    times = [event.scalars["clock/sim_time_s"] for event in recorder.of(RoundEnd)]
    assert times == sorted(times)
    with pytest.raises(ConfigError, match="participation='replaced' is not allowed: per_round"):
        run(1, selection=FixedSchedule(str(path)))


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"client_momentum": "shared"},
        {"participation": "per_round"},
        {"activation_buffer": 2},
        {"arrival": "random"},
    ],
)
def test_everything_survives_a_checkpoint_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    rich = {**WHOLE, "participants": 3, "batch_size": 4, "local_steps": 3,
            "client_optimizer": sgd(0.1, 0.9), "cell": SPREAD,
            "server_optimizer": sgd(0.1, 0.9), **options}  # fmt: skip
    found = []
    for resume in (None, tmp_path / "epoch=1.ckpt"):
        method: Any = build(GAS, network(0.2, norm=True), **rich)
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit(method, rows(SIZES), 4, [keep], resume=resume, enable_checkpointing=True)
        found.append(method)
    straight, resumed = found
    assert straight.visits.state() == resumed.visits.state()
    assert vars(straight.progress) == vars(resumed.progress)
    one, other = (method.buffer for method in found)
    assert one.weights == other.weights
    assert len(one.uploads) == len(other.uploads)
    assert all(torch.equal(a.received, b.received) for a, b in zip(one.uploads, other.uploads, strict=True))
    assert differing(one.statistics.state(), other.statistics.state()) == []
    for slot in straight.visits.in_slot:
        assert differing(weights(straight.slots[slot]), weights(resumed.slots[slot])) == []
    assert differing(whole(straight), whole(resumed)) == []
