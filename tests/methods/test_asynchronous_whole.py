"""FedBuff and FedAsync: their boxes carried out by hand, their limits, what they remember; and staleness in GAS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sfl.core.aggregators import CosineWeighted, Krum, Median
from lightning_sfl.core.clock import Cell
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, ClientStart, RoundEnd, RoundStart
from lightning_sfl.core.staleness import Constant, Hinge, Polynomial
from lightning_sfl.methods import GAS, FedAsync, FedAvg, FedBuff, SplitMethod
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, weights, whole

State = dict[str, Tensor]
SPREAD = Cell(compute_flops=(1e6, 1e7))
SIZES = (8, 5, 9, 8, 6)
BOTH = [FedBuff, FedAsync]


def both(event: Any) -> State:
    """The client's network: its half, with its copy of the server half where it has one."""
    return weights(event.client_half) | (weights(event.server_half) if event.server_half is not None else {})


class Networks(Recorder):
    """Whole networks at every start and end, and after every round."""

    def __init__(self) -> None:
        super().__init__()
        self.whole_starts: list[State] = []
        self.whole_ends: list[State] = []
        self.rounds: list[State] = []

    def on_client_start(self, module: SplitMethod, event: ClientStart) -> None:
        super().on_client_start(module, event)
        self.whole_starts.append(both(event))

    def on_client_end(self, module: SplitMethod, event: ClientEnd) -> None:
        super().on_client_end(module, event)
        self.whole_ends.append(both(event))

    def on_round_start(self, module: SplitMethod, event: RoundStart) -> None:
        self._keep(module, event)
        if not self.rounds:
            self.rounds.append(whole(module))

    def on_round_end(self, module: SplitMethod, event: RoundEnd) -> None:
        super().on_round_end(module, event)
        self.rounds.append(whole(module))


def run(
    cls: type[SplitMethod], rounds: int = 5, net: dict[str, Any] | None = None, **options: Any
) -> tuple[Any, Networks]:
    seen = Networks()
    cell = {} if cls is FedAvg else {"cell": SPREAD}
    given = {"participants": 3, "batch_size": 4, "local_steps": 3, **cell, **options}
    method = build(cls, network(**{"dtype": torch.float64, **(net or {})}), **given)
    dtype = next(method.backbone[0].parameters()).dtype
    fit(method, rows(SIZES, dtype=dtype), rounds, [seen])
    return method, seen


def handed_in(seen: Networks) -> list[list[tuple[ClientEnd, State, State]]]:
    """For each round who handed in, in order: its end, the network it started from long ago, the one it handed in.

    Told from outside, out of what watchers are shown: who goes on over the end of a round starts anew in the story.
    """
    found: list[list[tuple[ClientEnd, State, State]]] = []
    origin: dict[int, State] = {}
    carried: set[int] = set()
    starts, ends = iter(seen.whole_starts), iter(seen.whole_ends)
    for event in seen.events:
        if isinstance(event, RoundStart):
            found.append([])
        elif isinstance(event, ClientStart):
            state = next(starts)
            if event.slot not in carried:
                origin[event.slot] = state
            carried.discard(event.slot)
        elif isinstance(event, ClientEnd):
            state = next(ends)
            if event.finished:
                found[-1].append((event, origin[event.slot], state))
            else:
                carried.add(event.slot)
    return found


# --- the boxes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("model_buffer", [1, 2, None])
def test_fedbuff_by_hand(weighting: Any, normalise: bool, model_buffer: int | None) -> None:
    options = {"weighting": weighting, "model_buffer": model_buffer, "staleness": Polynomial(0.5)}
    _, seen = run(FedBuff, normalise=normalise, **options)
    stale = 0
    for now, came, after in zip(seen.rounds, handed_in(seen), seen.rounds[1:], strict=False):
        assert len(came) == (model_buffer or 3)
        factors = [(1 + event.missed) ** -0.5 for event, _, _ in came]
        shares = [event.weight for event, _, _ in came]
        total = sum(p * s for p, s in zip(shares, factors, strict=True)) if normalise else sum(shares)
        for name, tensor in now.items():
            moves = [p * s * (end[name] - start[name]) for p, s, (_, start, end) in zip(shares, factors, came)]  # noqa: B905
            torch.testing.assert_close(after[name], tensor + sum(moves) / total, rtol=0, atol=1e-13)
        stale += sum(event.missed > 0 for event, _, _ in came)
    assert stale > 2


@pytest.mark.parametrize("mixing", [0.6, 1.0])
def test_fedasync_by_hand(mixing: float) -> None:
    _, seen = run(FedAsync, mixing=mixing, arrivals=4, staleness=Hinge(10.0, 1))
    stale = 0
    for now, came, after in zip(seen.rounds, handed_in(seen), seen.rounds[1:], strict=False):
        assert len(came) == 4
        network_now = now
        for event, _, end in came:
            a = mixing * (1.0 if event.missed <= 1 else 1 / (10 * (event.missed - 1) + 1))
            network_now = {name: (1 - a) * network_now[name] + a * end[name] for name in now}
            stale += event.missed > 1
        assert furthest(network_now, after) < 1e-13
    assert stale > 2


@pytest.mark.parametrize("cls", BOTH)
def test_what_was_missed_is_counted_from_outside_as_well(cls: type[SplitMethod]) -> None:
    """Merges between a client's start and its end: rounds of FedBuff, hand-ins of FedAsync."""
    _, seen = run(cls, 6)
    merges, began, told = 0, {}, []
    carried: set[int] = set()
    for event in seen.events:
        if isinstance(event, ClientStart):
            began.update({} if event.slot in carried else {event.slot: merges})
            carried.discard(event.slot)
        elif isinstance(event, ClientEnd):
            assert event.missed == merges - began[event.slot]
            told.append(event.missed)
            merges += cls is FedAsync and event.finished
            carried.update({event.slot} - ({event.slot} if event.finished else set()))
        elif isinstance(event, RoundEnd):
            merges += cls is FedBuff
            finished = [e.missed for e in seen.of(ClientEnd) if e.finished and e.round == event.round]
            assert event.scalars["staleness/mean"] == pytest.approx(sum(finished) / len(finished))
            assert event.scalars["staleness/max"] == max(finished)
    assert max(told) >= 2


# --- limits -----------------------------------------------------------------------------------------------------------

RICH = {"dropout": 0.2, "norm": True, "dtype": torch.float32}


@pytest.mark.parametrize("weighting", ["uniform", "samples", "rows"])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_buffer_of_fresh_updates_is_fedavg_bit_for_bit(weighting: Any, normalise: bool) -> None:
    """Clients that start together miss nothing, whoever of them is first."""
    common = {"weighting": weighting, "client_optimizer": sgd(0.1, 0.9), "local_steps": None, "local_epochs": 2}
    options = {"participation": "per_round", "staleness": Polynomial(2.0), "normalise": normalise}
    buffered, seen = run(FedBuff, 4, RICH, **options, **common)
    assert {event.missed for event in seen.of(ClientEnd)} == {0}
    assert differing(whole(buffered), whole(run(FedAvg, 4, RICH, **common)[0])) == []


@pytest.mark.parametrize("rule", [CosineWeighted(), Krum(0, 1), Median()])
def test_so_it_is_with_other_aggregators(rule: Any) -> None:
    common = {"aggregator": rule, "weighting": "samples"}
    buffered, _ = run(FedBuff, 3, RICH, participation="per_round", **common)
    assert differing(whole(buffered), whole(run(FedAvg, 3, RICH, **common)[0])) == []


def test_fedasync_that_takes_all_of_its_only_client_is_fedavg_bit_for_bit() -> None:
    one = {"participants": 1, "client_optimizer": sgd(0.1, 0.9)}
    mixed, seen = run(FedAsync, 4, RICH, mixing=1.0, participation="per_round", **one)
    assert {event.missed for event in seen.of(ClientEnd)} == {0}
    assert differing(whole(mixed), whole(run(FedAvg, 4, RICH, **one)[0])) == []


@pytest.mark.parametrize("cls", [*BOTH, GAS])
def test_functions_that_make_no_difference(cls: type[SplitMethod]) -> None:
    plain = whole(run(cls, net=RICH)[0])
    for function in (Constant(), Polynomial(0.0), Hinge(10.0, 10**6), Hinge(0.0, 0)):
        assert differing(whole(run(cls, net=RICH, staleness=function)[0]), plain) == []
    assert differing(whole(run(cls, net=RICH, staleness=Polynomial(1.0))[0]), plain) != []


@pytest.mark.parametrize("cls", BOTH)
def test_one_slot_is_never_late(cls: type[SplitMethod]) -> None:
    _, seen = run(cls, 4, participants=1)
    assert {event.missed for event in seen.of(ClientEnd)} == {0}


def test_the_servers_rate_scales_fedbuffs_step() -> None:
    full, half = (run(FedBuff, 1, merge_optimizer=factory)[0] for factory in (None, sgd(0.5)))
    start = weights(network(dtype=torch.float64))
    wanted = {name: start[name] + 0.5 * (tensor - start[name]) for name, tensor in whole(full).items()}
    assert furthest(whole(half), wanted) < 1e-14


def test_batch_norm_statistics_are_averaged_as_they_come() -> None:
    _, seen = run(FedBuff, 4, {"norm": True}, staleness=Polynomial(1.0))
    for came, after in zip(handed_in(seen), seen.rounds[1:], strict=True):
        for name in ("bn1.running_mean", "bn2.running_var"):
            wanted = sum(end[name] for _, _, end in came) / len(came)
            torch.testing.assert_close(after[name], wanted, rtol=0, atol=1e-13)
        assert after["bn1.num_batches_tracked"] == max(end["bn1.num_batches_tracked"] for _, _, end in came)


def test_gas_weighs_halves_by_their_staleness() -> None:
    _, seen = run(GAS, 5, staleness=Polynomial(1.0), weighting="samples", model_buffer=2)
    ends = list(zip(seen.of(ClientEnd), seen.ends, strict=True))
    for index, after in enumerate(seen.rounds[1:]):
        came = [(event, end) for event, end in ends if event.finished and event.round == index]
        weighed = [event.weight / (1 + event.missed) for event, _ in came]
        for name in ("fc1.weight", "fc1.bias"):
            wanted = sum(w * end[name] for w, (_, end) in zip(weighed, came, strict=True)) / sum(weighed)
            torch.testing.assert_close(after[name], wanted, rtol=0, atol=1e-13)
    assert any(event.missed for event, _ in ends if event.finished)


# --- time, memory, settings -------------------------------------------------------------------------------------------


def test_nobody_waits_for_the_slowest() -> None:
    """The time of three hand-ins, whoever they are of, against that of the slowest of three."""
    times = {}
    for participation in ("replaced", "per_round"):
        cell = Cell(compute_flops=(1e5, 1e7), distance_km=(0.1, 0.1))
        _, seen = run(FedBuff, 20, participation=participation, cell=cell)
        times[participation] = seen.of(RoundEnd)[-1].scalars["clock/sim_time_s"]
    assert times["replaced"] < 0.8 * times["per_round"]


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("options", [{}, {"client_momentum": "shared"}, {"arrival": "random"}, {"bn_buffers": "local"}])
def test_everything_survives_a_checkpoint_bit_for_bit(
    cls: type[SplitMethod], options: dict[str, Any], tmp_path: Path
) -> None:
    found: list[Any] = []
    for resume in (None, tmp_path / "epoch=2.ckpt"):
        settings = {"staleness": Polynomial(), "client_optimizer": sgd(0.1, 0.9), "local_steps": 3, **options}
        method = build(cls, network(0.2, norm=True), participants=3, batch_size=4, cell=SPREAD, **settings)
        keep, seen = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1), Recorder()
        fit(method, rows(SIZES), 6, [keep, seen], resume=resume, enable_checkpointing=True)
        found.append((method, [event.scalars for event in seen.of(RoundEnd)]))
    (straight, told), (resumed, told_again) = found
    assert straight.visits.state() == resumed.visits.state()
    assert told[3:] == told_again
    assert max(scalars["staleness/max"] for scalars in told_again) > 0
    for slot in straight.visits.in_slot:
        for halves in ("slots", "server_slots"):
            assert differing(weights(getattr(straight, halves)[slot]), weights(getattr(resumed, halves)[slot])) == []
    assert differing(whole(straight), whole(resumed)) == []


def test_only_versions_in_use_are_kept() -> None:
    method, _ = run(FedBuff, 9, model_buffer=1)
    assert {*method.versions} == {visit.version for visit in method.visits.in_slot.values()}
    assert len(method.versions) <= 3


REFUSED: list[tuple[type[SplitMethod], dict[str, Any], str]] = [
    (FedAsync, {"mixing": 0.0}, "mixing=0.0 is not allowed: above 0, at most 1"),
    (FedAsync, {"mixing": 1.5}, "mixing=1.5 is not allowed"),
    (FedAsync, {"arrivals": 0}, "arrivals=0 is not allowed: an integer >= 1"),
    (FedAsync, {"arrivals": 2, "participation": "per_round"}, "arrivals=2 is not allowed: null where"),
    (FedAsync, {"aggregator": Median()}, "aggregator='Median' is not allowed: none in FedAsync, as what clients"),
    (FedAsync, {"merge_optimizer": sgd(1.0)}, "merge_optimizer='an optimizer' is not allowed: null in FedAsync"),
    (FedBuff, {"model_buffer": 0}, "model_buffer=0 is not allowed"),
    (FedBuff, {"cell": Cell(constants="alexnet")}, "cell.constants='alexnet' is not allowed: auto in FedBuff"),
]


@pytest.mark.parametrize(("cls", "options", "named"), REFUSED)
def test_settings_without_a_meaning(cls: type[SplitMethod], options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(cls, **options)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)
