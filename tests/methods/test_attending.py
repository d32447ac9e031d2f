"""Clients that stay away or are late, in the loop: who is merged, what a called-off round leaves alone, the counts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sfl.core import events
from lightning_sfl.core.aggregators import Krum
from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.clock import Cell
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.fed_cbs import FedCBS
from lightning_sfl.core.oort import Oort
from lightning_sfl.core.selection import FixedSchedule, Uniform
from lightning_sfl.methods import (
    GAS,
    SFL,
    SFLV1,
    SFLV2,
    USFL,
    Centralized,
    FedAvg,
    FedSGD,
    HoloGrad,
    MiniBatchSFL,
    Mix2SFL,
    MultiSFL,
    SplitLearning,
    SplitMethod,
)
from tests.every_method import ASYNCHRONOUS, METHODS
from tests.tiny import Rows, build, differing, fit, furthest, network, rows, sgd, weights, whole

SIZES = (5, 4, 9, 2, 7, 6)
ATTENDING = [method for method in METHODS if method not in (*ASYNCHRONOUS, Centralized, HoloGrad)]
HURRIED = [SFL, SFLV1, MiniBatchSFL, USFL, Mix2SFL, FedAvg, FedSGD]
RARE = Attendance(availability=0.4, quorum=2)


class Story:
    """Events of a run, and the halves after every round; unlike `Recorder` it bears rounds without a loss."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.states: list[dict[str, Any]] = []

    def callback(self) -> Any:
        import lightning as L

        story = self

        class Watch(L.Callback):
            def on_round_end(self, module: SplitMethod, event: events.RoundEnd) -> None:
                story.seen.append(event)
                story.states.append(whole(module))

        for record in events.Event.__args__:
            if record is not events.RoundEnd:
                setattr(Watch, record.handler, lambda self, module, event: story.seen.append(event))
        return Watch()

    def of(self, record: type[Any]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, record)]


def run(cls: type[SplitMethod], rounds: int = 4, data: Rows | None = None, **options: Any) -> tuple[SplitMethod, Story]:
    story = Story()
    made = build(cls, network(0.2, True), **{"batch_size": 4, "participants": 4, **options})
    return fit(made, data or rows(SIZES), rounds, [story.callback()]), story


# --- staying away -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ATTENDING)
def test_a_round_below_quorum_keeps_the_state_and_is_counted(cls: type[SplitMethod]) -> None:
    method, story = run(cls, 8, attendance=RARE)
    before = dict(network(0.2, True).state_dict())
    met = [event.participants for event in story.of(events.RoundStart)]
    off = 0
    for clients, after, told in zip(met, story.states, story.of(events.RoundEnd), strict=True):
        assert (differing(before, after) == []) == (clients == ())
        assert clients == () or len(set(clients)) >= 2
        off += clients == ()
        assert told.scalars["attendance/called_off_total"] == off
        before = after
    assert 0 < off < 8
    assert all(bool(tensor.isfinite().all()) for tensor in whole(method).values())
    assert [len({*method.participants_of(index)}) >= 2 for index in range(8)] == [clients != () for clients in met]


def test_who_comes_is_who_was_asked_and_came() -> None:
    some = Attendance(availability=0.6)
    method, story = run(SFL, 10, attendance=some)
    for index, event in enumerate(story.of(events.RoundStart)):
        asked = Uniform().select(index, method.available, 4, 0)
        assert sorted(event.participants) == sorted(some.come(asked, index, 0))


def test_those_that_come_are_merged_as_if_nobody_else_had_been_asked(tmp_path: Path) -> None:
    some = Attendance(availability=0.6)
    method, story = run(FedAvg, 5, attendance=some)
    met = [list(event.participants) for event in story.of(events.RoundStart)]
    assert all(met)
    (tmp_path / "met.json").write_text(json.dumps(met))
    listed, _ = run(FedAvg, 5, selection=FixedSchedule(str(tmp_path / "met.json")))
    assert differing(whole(method), whole(listed)) == []


def test_clients_come_by_chances_of_their_own() -> None:
    """Client 1 never does; a list of equal chances is the one number, bit for bit."""
    some = Attendance(availability=[1.0, 0.0, 0.5, 0.9, 0.3, 1.0], quorum=2)
    method, story = run(SFL, 10, attendance=some)
    for index, event in enumerate(story.of(events.RoundStart)):
        asked = Uniform().select(index, method.available, 4, 0)
        come = some.come(asked, index, 0)
        assert sorted(event.participants) == (sorted(come) if len(come) >= 2 else [])
        assert 1 not in event.participants
    listed, single = (run(FedAvg, 5, attendance=Attendance(each))[0] for each in ([0.6] * 6, 0.6))
    assert differing(whole(listed), whole(single)) == []
    full, plain = (run(FedAvg, 5, attendance=Attendance(each)) for each in ([1.0] * 6, 1.0))
    assert differing(whole(full[0]), whole(plain[0])) == []
    assert [e.scalars for e in full[1].of(events.RoundEnd)] == [e.scalars for e in plain[1].of(events.RoundEnd)]


def test_a_trace_says_who_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text(json.dumps([[0, 1, 2], [3, 4, 5], [1, 5]]))
    _, story = run(SFL, 7, participants=2, attendance=Attendance(trace=str(tmp_path / "trace.json")))
    met = [{*event.participants} for event in story.of(events.RoundStart)]
    assert all(len(clients) == 2 for clients in met)
    assert all(met[index] <= ({0, 1, 2}, {3, 4, 5}, {1, 5})[index % 3] for index in range(7))


# --- being late -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", HURRIED)
def test_with_time_enough_nothing_changes(cls: type[SplitMethod]) -> None:
    plain, _ = run(cls)
    patient, story = run(cls, attendance=Attendance(deadline_s=1e6))
    assert differing(whole(patient), whole(plain)) == []
    assert story.of(events.RoundEnd)[-1].scalars["attendance/finished"] == 4


@pytest.mark.parametrize("cls", HURRIED)
def test_the_first_to_be_done_end_the_round(cls: type[SplitMethod]) -> None:
    """Twice as many are asked as are wanted; the late ones hand in nothing, and are told to have been dropped."""
    method, story = run(cls, 4, participants=3, attendance=Attendance(overcommit=2.0))
    assert method.num_slots == 6
    for index in range(4):
        ends = [event for event in story.of(events.ClientEnd) if event.round == index]
        assert sum(event.finished for event in ends) == 3
        assert len(story.of(events.RoundStart)[index].participants) == len(ends)
    late = [event for event in story.of(events.ClientEnd) if not event.finished]
    assert late
    assert all(event.rows > 0 for event in late)


def test_what_is_merged_is_what_the_finishers_hand_in() -> None:
    ends: list[Any] = []

    class Keep(Story):
        def callback(self) -> Any:
            watch = super().callback()
            type(watch).on_client_end = lambda self, module, event: ends.append((event, weights(event.client_half)))
            return watch

    story = Keep()
    method = build(SFL, participants=3, batch_size=4, attendance=Attendance(overcommit=2.0), weighting="uniform")
    fit(method, rows(SIZES), 1, [story.callback()])
    assert [event.finished for event, _ in ends].count(False) > 0
    mean = torch.stack([state["fc1.weight"] for event, state in ends if event.finished]).mean(dim=0)
    torch.testing.assert_close(method.client_half.state_dict()["fc1.weight"], mean)
    sent = story.of(events.RoundEnd)[0].traffic_bytes["weights", "up"]
    assert sent == 3 * method.owned_bytes


def test_late_clients_have_taught_the_server_until_then() -> None:
    """The server has taken more steps than the finishers have batches, on rows of others too."""
    _, story = run(SFL, 1, participants=3, attendance=Attendance(overcommit=2.0))
    finishers = [event.client_id for event in story.of(events.ClientEnd) if event.finished]
    steps = len(story.of(events.ServerStep))
    own = sum(len(range(0, SIZES[client], 4)) for client in finishers)
    assert steps > own
    assert {event.client_ids[0] for event in story.of(events.ServerStep)} > {*finishers}


def test_a_tight_deadline_waits_for_the_quorum() -> None:
    _, story = run(FedAvg, 3, attendance=Attendance(deadline_s=1e-9, quorum=2))
    assert [told.scalars["attendance/finished"] for told in story.of(events.RoundEnd)] == [2, 2, 2]


def test_simulated_time_is_that_of_the_slowest_or_of_all_in_turn() -> None:
    """Everybody computes alike and sends next to nothing: 1 step is 2 passes."""
    cell = Cell(compute_flops=(1e3, 1e3), distance_km=(0.001, 0.001))
    told = {}
    for cls in (SFL, SFLV2):
        method, story = run(cls, 1, participants=6, cell=cell, attendance=Attendance(availability=0.999999))
        told[cls] = story.of(events.RoundEnd)[0].scalars["attendance/sim_time_s"]
    step = 2 * method.work_costs.flops / 1e3
    assert told[SFL] == pytest.approx(3 * step, rel=0.01)
    assert told[SFLV2] == pytest.approx((2 + 1 + 3 + 1 + 2 + 2) * step, rel=0.01)


def test_a_selection_that_learns_hears_of_late_clients_as_of_the_others() -> None:
    """All six are asked and the first to be done ends the round; who has no batch done by then is late, too."""
    method, story = run(SFL, 1, participants=1, selection=Oort(), attendance=Attendance(overcommit=6.0))
    seen = {event.client_id for event in story.of(events.ClientEnd)}
    assert 1 <= len(seen) < 6
    assert method.selection.last.tolist() == [1] * 6
    (done,) = [event.client_id for event in story.of(events.ClientEnd) if event.finished]
    assert method.selection.utility.tolist() == pytest.approx([float(method.selection.utility[done])] * 6)


# --- what is promised of every run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "attendance", "selection"),
    [
        (SFL, Attendance(availability=0.5, quorum=3, overcommit=1.5), Uniform), (MultiSFL, RARE, Uniform),
        (FedAvg, Attendance(availability=0.5, overcommit=1.5, quorum=2), Oort), (SplitLearning, RARE, Uniform),
        (SFL, Attendance(availability=[0.4, 0.5, 0.3, 0.9, 0.6, 0.2], quorum=3), partial(Oort, blacklist_after=1)),
        (SFL, Attendance(availability=0.5, quorum=3, overcommit=1.5), FedCBS),
    ],
)  # fmt: skip
def test_it_resumes_and_counts_on(
    cls: type[SplitMethod], attendance: Attendance, selection: Any, tmp_path: Path
) -> None:
    def trained(resume: Path | None = None) -> tuple[Any, list[Any]]:
        story, keep = Story(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        options = {"participants": 4, "batch_size": 4, "client_optimizer": sgd(0.1, 0.9), "selection": selection()}
        made = build(cls, network(0.2, True), attendance=attendance, **options)
        fit(made, rows(SIZES), 8, [keep, story.callback()], resume, enable_checkpointing=True)
        return whole(made), [event.scalars for event in story.of(events.RoundEnd)]

    wanted, told = trained()
    assert told[-1]["attendance/called_off_total"] > 0
    for done in (0, 3, 6):
        again, later = trained(tmp_path / f"epoch={done}.ckpt")
        assert differing(again, wanted) == []
        assert later == told[done + 1 :]
    unwatched = build(
        cls, network(0.2, True), attendance=attendance, participants=4, batch_size=4,
        client_optimizer=sgd(0.1, 0.9), selection=selection(),
    )  # fmt: skip
    assert differing(whole(fit(unwatched, rows(SIZES), 8)), wanted) == []


def test_splitfed_v1_is_fedavg_with_late_clients_only_as_far_as_time_goes() -> None:
    """What crosses the cut takes time: with availability alone they agree, bit for bit."""
    some = Attendance(availability=0.6)
    assert differing(whole(run(SFLV1, attendance=some)[0]), whole(run(FedAvg, attendance=some)[0])) == []
    assert furthest(whole(run(SFLV1, attendance=some)[0]), whole(run(SFLV1)[0])) > 1e-4


# --- where it has no meaning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "attendance", "named"),
    [
        (GAS, Attendance([0.5, 1.0]), r"availability=\[0.5, 1.0\] is not allowed: 1.0 in GAS, as clients come and go"),
        (GAS, Attendance(availability=0.5), r"availability=0.5 is not allowed: 1.0 in GAS, as clients come and go"),
        (HoloGrad, Attendance(availability=0.5), r"availability=0.5 is not allowed: 1.0 in HoloGrad, as `stragglers`"),
        (Centralized, Attendance(quorum=2), r"quorum=2 is not allowed: 1 in Centralized, as there are no clients"),
        (SFLV2, Attendance(overcommit=1.5), r"overcommit=1.5 is not allowed: 1.0 in SFLV2, as one client steps"),
        (SplitLearning, Attendance(deadline_s=1.0), r"deadline_s=1.0 is not allowed: None in SplitLearning"),
        (MultiSFL, Attendance(deadline_s=1.0), r"deadline_s=1.0 is not allowed: None in MultiSFL, as branches outlive"),
        (SFL, Attendance(quorum=11), r"quorum=11 is not allowed: at most participants=10"),
        (SFL, Attendance(trace="absent.json"), r"trace='absent.json' is not allowed: an existing"),
    ],
)
def test_is_refused(cls: type[SplitMethod], attendance: Attendance, named: str) -> None:
    with pytest.raises(ConfigError, match=f"attendance.{named}") as refusal:
        build(cls, attendance=attendance)
    assert "\n" not in str(refusal.value)


def test_is_refused_when_the_data_are_known() -> None:
    with pytest.raises(ConfigError, match=r"attendance.quorum=7 is not allowed: at most 6, the clients with data"):
        run(SFL, participants=8, attendance=Attendance(quorum=7))
    with pytest.raises(ConfigError, match=r"availability='5 numbers' is not allowed: a number for all, or 6, one for"):
        run(SFL, attendance=Attendance([0.5] * 5))
    with pytest.raises(ConfigError, match=r"aggregator='Krum' is not allowed: .* 5 clients a round, not 1"):
        run(SFL, participants=6, aggregator=Krum(), attendance=Attendance(availability=0.9))
    run(SFL, participants=6, aggregator=Krum(), attendance=Attendance(availability=0.9, quorum=5))


def test_a_trace_of_clients_that_do_not_exist_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text("[[0, 97], [6, 97], [5]]")
    with pytest.raises(ConfigError, match=r"attendance.trace='.*' is not allowed: .* from 0 to 5, which 6, 97 is not"):
        run(SFL, attendance=Attendance(trace=str(trace)))
