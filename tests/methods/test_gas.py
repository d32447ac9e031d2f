"""GAS: arrivals, buffers, the server's step, and its limits; three clients unless said otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sfl.core.activation_buffer import Generation
from lightning_sfl.core.clock import Cell
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, ClientStart, ClientStep, CutGradient, RoundEnd, RoundStart, ServerStep
from lightning_sfl.core.progress_weight import ProgressWeight
from lightning_sfl.core.selection import FixedSchedule
from lightning_sfl.methods import GAS, SFL, MiniBatchSFL, SplitMethod
from tests.equivalence.test_one_client import forked
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, weights, whole

EQUAL = Cell(compute_flops=(1e9, 1e9), distance_km=(0.5, 0.5))
SPREAD = Cell(compute_flops=(1e6, 1e7))
OFF = Generation(every=0)
WHOLE: dict[str, Any] = {"generation": Generation(), "prior_exponent": 1.0}
SYNCHRONOUS: dict[str, Any] = {"participation": "per_round", "prior_exponent": 0.0, "generation": OFF}
SIZES = (8, 8, 8, 8, 8)


def run(rounds: int = 3, sizes: tuple[int, ...] = SIZES, net: Any = None, **options: Any) -> tuple[Any, Recorder]:
    recorder = Recorder()
    method = build(GAS, net, **{**WHOLE, "participants": 3, "batch_size": 4, "cell": SPREAD, **options})
    fit(method, rows(sizes, dtype=next(net.parameters()).dtype if net else torch.float32), rounds, [recorder])
    return method, recorder


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


# --- the server -------------------------------------------------------------------------------------------------------


class Server(Recorder):
    """The server half at every client step and every server step."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[str, dict[str, Tensor]]] = []

    def on_cut_gradient(self, module: SplitMethod, event: CutGradient) -> None:
        self.states.append(("cut", weights(module.server_half)))

    def on_client_step(self, module: SplitMethod, event: ClientStep) -> None:
        self.states.append(("client", weights(module.server_half)))

    def on_server_step(self, module: SplitMethod, event: ServerStep) -> None:
        self.states.append(("server", weights(event.server_half)))


@pytest.mark.parametrize(("buffers", "moved"), [("frozen", False), ("trained", True)])
def test_the_server_half_stands_still_between_its_steps(buffers: str, moved: bool) -> None:
    server = Server()
    method = build(GAS, network(norm=True), participants=3, batch_size=4, local_server_buffers=buffers)
    fit(method, rows(SIZES), 2, [server])
    changed = [
        differing(before, after) for (_, before), (kind, after) in zip(server.states, server.states[1:], strict=False)
        if kind != "server"
    ]  # fmt: skip
    assert any(changed) == moved
    assert {name for names in changed for name in names} <= {
        f"bn2.{b}" for b in ("running_mean", "running_var", "num_batches_tracked")
    }
    kinds = [kind for kind, _ in server.states]
    assert kinds[:7] == ["cut", "client"] * 3 + ["server"]


def test_clients_learn_from_their_own_adjusted_mean_loss() -> None:
    _, recorder = run(2, sizes=(6, 6, 6), generation=OFF)
    for event in recorder.of(CutGradient):
        residual = event.logits.softmax(-1) - torch.nn.functional.one_hot(event.labels, 4)
        torch.testing.assert_close(event.logits_gradient, residual / event.rows, rtol=0, atol=1e-7)
        assert event.sent is event.raw or all(a is b for a, b in zip(event.sent, event.raw, strict=True))
        assert event.replayed == 0
    adjusted, plain = (whole(run(2, prior_exponent=e)[0]) for e in (1.0, 0.0))
    assert differing(adjusted, plain) != []


def test_duplicated_rows_leave_the_clients_step() -> None:
    moves = []
    for repeats in (1, 2):
        data = rows((4,), dtype=torch.float64)
        x, y = data.population.x.repeat(repeats, 1), data.population.y.repeat(repeats)
        recorder = Recorder()
        method = build(GAS, network(dtype=torch.float64), batch_size=None, generation=OFF)
        fit(method, type(data)(x, y, [range(4 * repeats)]), 1, [recorder])
        moves.append(recorder.ends[0])
    assert furthest(*moves) < 1e-12


def test_generated_rows_balance_the_servers_batch() -> None:
    method, recorder = run(6, generation=Generation(every=2))
    assert len(method.buffer.statistics.known) == 4
    sizes = [event.rows for event in recorder.of(ServerStep)]
    made = [event.synthetic for event in recorder.of(ServerStep)]
    assert set(sizes[1::2][2:]) == {4 * 4}
    assert all(4 <= count < 16 for count in made[1::2][2:])  # the buffer has 12 rows, and drops what is over 4
    assert set(made[::2]) == {0}
    assert set(sizes[::2]) == {3 * 4}


def test_options_change_what_they_should() -> None:
    plain = whole(run(4, client_optimizer=sgd(0.1, 0.9))[0])
    for option in (
        {"client_momentum": "shared"}, {"arrival": "random"}, {"activation_buffer": 2}, {"model_buffer": 2},
        {"progress_weight": ProgressWeight("uniform")}, {"generation": Generation(covariance="full")},
        {"generation": Generation(overflow="keep")}, {"generation": OFF}, {"participation": "per_round"},
    ):  # fmt: skip
        assert differing(plain, whole(run(4, client_optimizer=sgd(0.1, 0.9), **option)[0])) != [], option
    without = whole(run(4)[0])
    assert differing(without, whole(run(4, client_momentum="shared")[0])) == []


def test_a_tuple_at_the_cut_needs_generation_off() -> None:
    options = {"participants": 2, "batch_size": 4}
    with pytest.raises(ConfigError, match=r"generation.every=1 is not allowed: 0 where a tuple is cut"):
        fit(build(GAS, forked(), "lower", **WHOLE, **options), rows(SIZES))
    recorder = Recorder()
    fit(build(GAS, forked(), "lower", generation=OFF, **options), rows(SIZES), 2, [recorder])
    assert {len(event.sent) for event in recorder.of(CutGradient)} == {2}


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation_buffer", 0), ("model_buffer", 0), ("prior_exponent", -1.0)],
)
def test_ranges(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r} is not allowed: "):
        build(GAS, **{key: value})
    with pytest.raises(ConfigError, match="model_buffer=2 is not allowed: null where"):
        build(GAS, participation="per_round", model_buffer=2)


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
