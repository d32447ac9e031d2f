"""Selections that learn: what the loop tells them, with which methods, and that a run with them repeats and resumes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy

from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.clock import durations
from lightning_sfl.core.errors import CheckpointError, ConfigError
from lightning_sfl.core.fed_cbs import FedCBS
from lightning_sfl.core.oort import Oort
from lightning_sfl.core.power_of_choice import PowerOfChoice
from lightning_sfl.core.reports import Report
from lightning_sfl.core.selection import Uniform
from lightning_sfl.methods import (
    GAS,
    SFL,
    SFLV1,
    Centralized,
    FedAvg,
    FedSGD,
    MiniBatchSFL,
    MultiSFL,
    PerFedAvg,
    SplitMethod,
)
from tests.every_method import ASYNCHRONOUS, METHODS
from tests.tiny import Recorder, build, differing, fit, network, rows, sgd, whole

SIZES = (5, 4, 9, 2, 7)
SECOND_HALVES = {5: 3, 4: 2, 9: 5, 2: 1, 7: 4}  # of batches of 4 rows
CHOOSING = [method for method in METHODS if method is not Centralized]


class Curious(Uniform):
    """Uniform, and keeps what it is told."""

    learns = True

    def __init__(self) -> None:
        self.told: list[dict[int, Report]] = []

    def tell_work(self, rows: Any, seconds: Any) -> None:
        self.rows, self.seconds = rows, seconds

    def learn(self, round: int, reports: Any) -> None:
        assert round == len(self.told)
        self.told.append(dict(reports))


def options_of(cls: type[SplitMethod]) -> dict[str, Any]:
    return {"participation": "per_round"} if cls in ASYNCHRONOUS else {}


@pytest.mark.parametrize("cls", CHOOSING)
def test_every_method_tells_of_its_participants(cls: type[SplitMethod]) -> None:
    curious, recorder = Curious(), Recorder()
    options = {"participants": 3, "batch_size": 4, **options_of(cls)}
    fit(build(cls, selection=curious, **options), rows(SIZES), 2, [recorder])
    asked, plain = (fit(build(cls, **each), rows(SIZES), 2) for each in ({**options, "selection": Curious()}, options))
    assert differing(whole(asked), whole(plain)) == []
    for index, told in enumerate(curious.told):
        ended = [e for e in recorder.events if type(e).__name__ == "ClientEnd" and e.round == index]
        assert {*told} == {event.client_id for event in ended}
        for client, report in told.items():
            trained = sum(event.rows for event in ended if event.client_id == client)
            assert report.rows == (SECOND_HALVES[trained] if cls is PerFedAvg else trained)
            assert 0 < report.mean <= report.root_mean_square


@pytest.mark.parametrize("cls", [SFL, MiniBatchSFL, FedSGD, SFLV1])
def test_losses_are_those_of_the_rows(cls: type[SplitMethod]) -> None:
    """All rows at once, from the network everybody starts with; joint or one by one."""
    curious, data, net = Curious(), rows(SIZES), network()
    with torch.no_grad():
        losses = cross_entropy(net(data.population.x), data.population.y, reduction="none").double()
    fit(build(cls, network(), selection=curious, batch_size=None, server_optimizer=sgd(0.0)), data)
    for client, report in curious.told[0].items():
        own = losses[torch.from_numpy(data.population.rows[client])]
        assert report.mean == pytest.approx(float(own.mean()), rel=1e-5)
        assert report.root_mean_square == pytest.approx(float(own.square().mean().sqrt()), rel=1e-5)


def test_work_and_time_of_a_round() -> None:
    """Steps there and back, the smashed data of each, and the half; the whole network where nothing is cut."""
    curious = Curious()
    method = fit(build(SFL, selection=curious, batch_size=4, local_epochs=2, participants=3), rows(SIZES))
    assert curious.rows == list(SIZES)
    costs = method.costs(rows(SIZES).example()[:1])
    assert costs.row_bits == 8 * 32
    takes = durations(method.cell, costs, 0, 2, 4, 3)
    steps = 2 * 3
    assert curious.seconds[2] == pytest.approx(steps * (2 * takes.process_s + takes.send_batch_s) + takes.send_model_s)
    curious = Curious()
    fit(build(SFL, selection=curious, batch_size=4, local_steps=1), rows(SIZES))
    assert curious.rows == [4, 4, 4, 2, 4]
    whole_network = fit(build(FedAvg), rows(SIZES)).costs(rows(SIZES).example()[:1])
    assert (whole_network.row_bits, whole_network.model_bits > costs.model_bits) == (0, True)


@pytest.mark.parametrize("selection", [Oort, partial(Oort, min_rows=4, blacklist_after=0), PowerOfChoice, FedCBS])
@pytest.mark.parametrize("cls", [SFL, FedAvg, MultiSFL, GAS])
def test_it_repeats_resumes_and_is_not_changed_by_watching(
    cls: type[SplitMethod], selection: Any, tmp_path: Path
) -> None:
    def trained(watchers: list[Any], resume: Path | None = None) -> tuple[list[Any], Any]:
        recorder = Recorder()
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        options = {"participants": 2, "batch_size": 4, "selection": selection(), **options_of(cls)}
        method = build(cls, network(0.2, True), **options)
        after = whole(fit(method, rows(SIZES), 5, [keep, recorder], resume, enable_checkpointing=True))
        return [e.participants for e in recorder.events if type(e).__name__ == "RoundStart"], after

    met, wanted = trained([])
    again, other = trained([], tmp_path / "epoch=2.ckpt")
    assert again == met[3:]
    assert differing(other, wanted) == []
    options = {"participants": 2, "batch_size": 4, "selection": selection(), **options_of(cls)}
    method = fit(build(cls, network(0.2, True), **options), rows(SIZES), 5)
    assert differing(whole(method), wanted) == []
    assert any(f"chosen by {type(method.selection).__name__} as training goes on" in line for line in method.describe())


@pytest.mark.parametrize("cls", CHOOSING)
def test_a_selection_by_labels_counts_who_took_part(cls: type[SplitMethod]) -> None:
    recorder, selection = Recorder(), FedCBS()
    fit(build(cls, selection=selection, participants=2, batch_size=4, **options_of(cls)), rows(SIZES), 3, [recorder])
    met = [client for e in recorder.events if type(e).__name__ == "RoundStart" for client in e.participants]
    assert selection.picks.tolist() == [met.count(client) for client in range(len(SIZES))]
    assert sum(met.count(client) for client in range(len(SIZES))) == 3 * 2


def test_poorly_learned_clients_are_preferred() -> None:
    """Client 4's labels are noise, so its losses stay large."""
    data = rows((6, 6, 6, 6, 6, 6))
    data.population.y[24:30] = torch.tensor([0, 1, 2, 3, 0, 1])
    data.population.x[24:30] = 0
    counts = {}
    for selection in (Uniform(), Oort(least_exploration=0.5, speed_penalty=0.0), PowerOfChoice(6)):
        recorder = Recorder()
        fit(build(SFL, selection=selection, participants=2, client_optimizer=sgd(0.3)), data, 40, [recorder])
        starts = [e.participants for e in recorder.events if type(e).__name__ == "RoundStart"]
        counts[type(selection).__name__] = int(np.sum([4 in clients for clients in starts]))
    assert counts["Uniform"] < 22
    assert counts["Oort"] > counts["Uniform"]
    assert counts["PowerOfChoice"] > counts["Uniform"]


@pytest.mark.parametrize("local_epochs", [1, 2])
def test_late_clients_have_the_average_utility_of_those_that_are_done(local_epochs: int) -> None:
    """Utilities are rows * root mean square, and no late client's own rows have a say in what it gets."""
    selection, recorder = Oort(), Recorder()
    options = {"participants": 2, "batch_size": 4, "local_epochs": local_epochs, "weighting": "uniform"}
    attendance = Attendance(overcommit=2.5)
    fit(build(SFL, selection=selection, attendance=attendance, **options), rows(SIZES), 1, [recorder])
    ended = [event for event in recorder.events if type(event).__name__ == "ClientEnd"]
    done, late = ([e.client_id for e in ended if e.finished == finished] for finished in (True, False))
    assert len(done) == 2 < len(ended)
    utilities = selection.utility[done]
    assert float(utilities.min()) > 0
    assert abs(float(utilities[0] - utilities[1])) > 0.5
    assert selection.utility[late].tolist() == pytest.approx([float(utilities.mean())] * len(late))


def test_who_has_taken_part_most_often_sits_the_next_round_out() -> None:
    """Clients 0 to 3 alone have rows enough, and 30% of four is one: the first of those that did most often."""
    met, recorder = [], Recorder()
    selection = Oort(min_rows=5, blacklist_after=0)
    method = build(FedAvg, selection=selection, participants=2, batch_size=4)
    fit(method, rows((5, 9, 5, 9, 2, 4)), 12, [recorder])
    met = [{*e.participants} for e in recorder.events if type(e).__name__ == "RoundStart"]
    picks = np.zeros(6, int)
    for clients in met:
        assert clients <= {0, 1, 2, 3}
        often = int(np.argmax(picks))
        assert not picks[often] or often not in clients
        picks[[*clients]] += 1
    assert selection.picks.tolist() == picks.tolist()


def test_a_checkpoint_without_counts_is_no_start_for_a_blacklist(tmp_path: Path) -> None:
    def trained(selection: Oort, resume: Path | None = None) -> dict[str, Any]:
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        method = build(SFL, selection=selection, participants=2)
        return whole(fit(method, rows(SIZES), 3, [keep], resume, enable_checkpointing=True))

    wanted = trained(Oort())
    with pytest.raises(CheckpointError, match=r"does not fit this network: .* \"selection.picks\"") as refusal:
        trained(Oort(blacklist_after=1), tmp_path / "epoch=0.ckpt")
    assert "\n" not in str(refusal.value)
    trained(Oort(blacklist_after=9))  # nobody comes that far
    assert differing(trained(Oort(), tmp_path / "epoch=0.ckpt"), wanted) == []


def test_where_nobody_is_chosen() -> None:
    with pytest.raises(ConfigError, match="selection='Oort' is not allowed: none in Centralized") as refusal:
        build(Centralized, selection=Oort())
    assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match="participation='replaced' is not allowed"):
        build(GAS, selection=Oort())
