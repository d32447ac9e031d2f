"""Effort in the loop: what is trained in which round, limits, resume, and where it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sfl.core.adaptive import FedYogi
from lightning_sfl.core.aggregators import Median
from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.effort import Decay, Effort, EpsilonGreedy, Plateau, UpperConfidence
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, RoundEnd
from lightning_sfl.methods import SFL, USFL, FedAvg, FedSGD, HoloGrad, MultiSFL, SplitMethod
from tests.every_method import ASYNCHRONOUS, METHODS
from tests.tiny import Recorder, build, differing, fit, network, rows, sgd, whole

SIZES = (5, 4, 9, 2)
SAME = (*ASYNCHRONOUS, MultiSFL, FedSGD, HoloGrad)
PACED = [method for method in METHODS if method not in SAME]


def run(cls: type[SplitMethod], effort: Effort | None, rounds: int = 3, **options: Any) -> tuple[SplitMethod, Recorder]:
    recorder = Recorder()
    method = build(cls, network(0.2, True), effort=effort, **{"batch_size": 4, "local_epochs": 3, **options})
    return fit(method, rows(SIZES), rounds, [recorder]), recorder


@pytest.mark.parametrize("cls", PACED)
def test_a_schedule_that_stays_is_none(cls: type[SplitMethod]) -> None:
    plain = whole(run(cls, None)[0])
    for effort in (Decay(1.0), Plateau(99), EpsilonGreedy([3]), UpperConfidence([3])):
        assert differing(whole(run(cls, effort)[0]), plain) == []


@pytest.mark.parametrize("cls", PACED)
def test_rounds_have_the_epochs_that_are_said(cls: type[SplitMethod]) -> None:
    """4, 2, 1 epochs: rows of each client in proportion, and the round's record says so."""
    _, recorder = run(cls, Decay(0.5), local_epochs=4, **({"batch_size": None} if cls is USFL else {}))
    assert [event.scalars["effort/local_epochs"] for event in recorder.of(RoundEnd)] == [4, 2, 1]
    trained = [{e.client_id: e.rows for e in recorder.of(ClientEnd) if e.round == index} for index in range(3)]
    assert trained[0] == {client: 4 * count for client, count in trained[2].items()}
    assert trained[1] == {client: 2 * count for client, count in trained[2].items()}


def test_batches_grow() -> None:
    _, recorder = run(FedAvg, Decay(1.0, batch_factor=3.0, most_batch=8), local_epochs=1)
    assert [event.scalars["effort/batch_size"] for event in recorder.of(RoundEnd)] == [4, 8, 8]
    steps = [{e.client_id: e.steps for e in recorder.of(ClientEnd) if e.round == index} for index in range(3)]
    assert [each[2] for each in steps] == [3, 2, 2]


@pytest.mark.parametrize(
    "made", [lambda: Plateau(1), lambda: EpsilonGreedy([1, 2, 3], 0.5), lambda: UpperConfidence([1, 3])]
)
@pytest.mark.parametrize("cls", [SFL, FedAvg])
def test_it_repeats_resumes_and_is_not_changed_by_watching(cls: type[SplitMethod], made: Any, tmp_path: Path) -> None:
    def trained(watched: bool, resume: Path | None = None) -> tuple[Any, list[Any]]:
        recorder, keep = Recorder(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        options = {"batch_size": 4, "local_epochs": 4, "participants": 2, "client_optimizer": sgd(0.3, 0.9)}
        method = build(cls, network(0.2, True), effort=made(), **options)
        watchers = [keep, *([recorder] if watched else [])]
        after = whole(fit(method, rows(SIZES), 7, watchers, resume, enable_checkpointing=True))
        return after, [event.scalars["effort/local_epochs"] for event in recorder.of(RoundEnd)]

    wanted, story = trained(watched=True)
    assert len(set(story)) > 1
    assert differing(trained(watched=False)[0], wanted) == []
    for done in (0, 4):
        again, later = trained(watched=True, resume=tmp_path / f"epoch={done}.ckpt")
        assert differing(again, wanted) == []
        assert later == story[done + 1 :]


def test_an_effort_that_served_before_begins_anew() -> None:
    effort = Plateau(1)
    stories = [run(SFL, effort, 5, client_optimizer=sgd(0.5))[1].losses for _ in range(2)]
    assert stories[0] == stories[1]


def test_the_first_screen_says_what_is_not_as_by_default() -> None:
    options = {"aggregator": Median(), "merge_optimizer": FedYogi, "attendance": Attendance(availability=0.9, quorum=2)}
    lines = run(SFL, Decay(0.5), **options)[0].describe()
    assert "with: aggregator Median, merge_optimizer FedYogi, effort Decay, availability 0.9, quorum 2" in lines
    assert not any(line.startswith("with: ") for line in run(SFL, None)[0].describe())


@pytest.mark.parametrize("cls", SAME)
def test_where_rounds_have_to_be_alike(cls: type[SplitMethod]) -> None:
    with pytest.raises(ConfigError, match=f"effort='Decay' is not allowed: null in {cls.__name__}, as ") as refusal:
        build(cls, effort=Decay())
    assert "\n" not in str(refusal.value)


def test_steps_are_no_epochs() -> None:
    with pytest.raises(ConfigError, match="local_steps=3 is not allowed: null where `effort`"):
        build(SFL, effort=Decay(), local_steps=3)
    with pytest.raises(ConfigError, match=r"effort.batch_factor=2.0 is not allowed"):
        build(SFL, effort=Decay(batch_factor=2.0, most_batch=9), batch_size=None)
