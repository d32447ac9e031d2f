"""The labels that every method's server half learns from: as told in events, and as the callback measures them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_sfl.callbacks import LabelImbalance
from lightning_sfl.core import events
from lightning_sfl.core.activation_buffer import Generation
from lightning_sfl.core.balancing import Balancing
from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.mixing import SmashMix
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.replay import Replay
from lightning_sfl.measures.label_imbalance import label_counts
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
)
from lightning_sfl.records.report import RoundReport
from tests.every_method import METHODS, rich_of
from tests.tiny import NUM_CLASSES, Recorder, Rows, build, fit, rows, stretches

X = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))


class Told(LabelImbalance):
    """Keeps what it would report, round by round."""

    def __init__(self, every: int = 1) -> None:
        super().__init__(every)
        self.told: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        found = RoundReport(module.current_epoch)
        self.report(module, found)
        self.told.append(found.scalars)


def run(cls: Any, data: Rows, rounds: int = 1, **options: Any) -> tuple[list[dict[str, Any]], Recorder, Any]:
    watcher, recorder = Told(), Recorder()
    method = fit(build(cls, **options), data, rounds, [watcher, recorder])
    return watcher.told, recorder, method


def one_class_each(clients: int = 4, size: int = 4) -> Rows:
    """Client i owns `size` rows of class i."""
    count = clients * size
    return Rows(X[:count], torch.arange(count) // size % NUM_CLASSES, stretches([size] * clients))


def counts_of(recorder: Recorder) -> list[list[float]]:
    return [label_counts([event.labels], NUM_CLASSES)[0].tolist() for event in recorder.of(events.ServerStep)]


def imbalances(told: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(scalars["labels/imbalance"], scalars["labels/imbalance_round"]) for scalars in told]


@pytest.mark.parametrize("cls", [SFL, SFLV1, SFLV2, SplitLearning])
def test_a_step_for_every_client_sees_one_class_and_the_round_sees_all(cls: Any) -> None:
    told, recorder, _ = run(cls, one_class_each(), batch_size=2)
    assert imbalances(told) == [(1.0, pytest.approx(0, abs=1e-12))]
    assert recorder.count(events.ServerStep) == 8


@pytest.mark.parametrize("cls", [MiniBatchSFL, USFL, FedSGD, HoloGrad, Centralized])
def test_a_joint_step_sees_all_classes(cls: Any) -> None:
    told, recorder, _ = run(cls, one_class_each(), batch_size=None if cls is Centralized else 2)
    assert imbalances(told) == [(pytest.approx(0, abs=1e-12),) * 2]
    assert all(len(set(counts)) == 1 for counts in counts_of(recorder))


def test_absent_classes() -> None:
    told, _, _ = run(MiniBatchSFL, one_class_each(), participants=2, batch_size=2)
    assert imbalances(told) == [(pytest.approx(1 / 2),) * 2]


def test_without_server_steps_there_is_nothing_to_say() -> None:
    told, recorder, _ = run(FedAvg, one_class_each(), batch_size=2)
    assert told == [{}]
    assert recorder.count(events.ServerStep) == 0


def test_balanced_joint_batches_of_usfl() -> None:
    """The clients have 12 rows of class 0 and 4 of each other one; as they are, and trimmed."""
    labels = torch.tensor([0] * 12 + [1] * 4 + [2] * 4 + [3] * 4)
    data = Rows(X[:24], labels, [range(12), range(12, 24)])
    plain, _, _ = run(USFL, data, batch_size=None, balancing=Balancing("none"))
    shares = [1 / 2, 1 / 6, 1 / 6, 1 / 6]
    expected = 1 + sum(p * math.log(p) for p in shares) / math.log(4)
    assert imbalances(plain) == [(pytest.approx(expected),) * 2]
    trimmed, recorder, _ = run(USFL, data, batch_size=None, balancing=Balancing("trimming"))
    assert counts_of(recorder) == [[4, 4, 4, 4]]
    assert imbalances(trimmed) == [(pytest.approx(0, abs=1e-12),) * 2]


def test_generated_rows_of_gas() -> None:
    """Buffers of one upload are of one class; with what is made up for the classes seen so far they are balanced."""
    options = {"batch_size": 4, "local_steps": 2, "activation_buffer": 1, "participants": 4}
    plain, recorder, _ = run(GAS, one_class_each(), 3, **options)
    assert [step for step, _ in imbalances(plain)] == [1.0] * 3
    assert all(sorted(counts) == [0, 0, 0, 4] for counts in counts_of(recorder))
    made, recorder, _ = run(GAS, one_class_each(), 3, **options, generation=Generation(partial=True))
    found = counts_of(recorder)
    assert all(set(counts) <= {0, 4} for counts in found)
    assert [event.synthetic for event in recorder.of(events.ServerStep)] == [sum(counts) - 4 for counts in found]
    known = [sum(count > 0 for count in counts) for counts in found]
    assert known == sorted(known)
    assert (known[0], known[-1]) == (1, 4)
    assert imbalances(made)[-1] == (pytest.approx(0, abs=1e-12),) * 2
    assert [event.rows for event in recorder.of(events.ServerStep)] == [sum(counts) for counts in found]


def test_replayed_rows_of_multisfl() -> None:
    replay = Replay(proportion=0.5, most=0.9, placement="spread")
    told, recorder, _ = run(MultiSFL, rows((8,) * 5), 3, participants=2, batch_size=4, replay=replay)
    steps, cuts = recorder.of(events.ServerStep), recorder.of(events.CutGradient)
    assert [sum(counts) for counts in counts_of(recorder)] == [event.rows for event in steps]
    assert sum(event.rows for event in steps) == sum(event.rows + event.replayed for event in cuts)
    assert any(event.replayed for event in cuts)
    own = {(event.round, event.slot): [] for event in cuts}
    for event in cuts:
        own[event.round, event.slot].append(event.labels)
    whole = {key: label_counts([[(torch.cat(labels), 1.0)]], NUM_CLASSES)[0] for key, labels in own.items()}
    for key, counts in whole.items():
        served = [event.labels for event in steps if (event.round, event.branch) == key]
        assert bool((label_counts(served, NUM_CLASSES).sum(0) >= counts).all())
    assert len(told) == 3


def test_mixed_labels_of_mix2sfl() -> None:
    """Joint rows and mixes of clients of one class each: the shares of the mixes are those that were drawn."""
    mix = SmashMix(ratio=0.5)
    told, recorder, method = run(Mix2SFL, one_class_each(), batch_size=4, smashmix=mix)
    (event,) = recorder.of(events.ServerStep)
    pairs = mix.draw([4] * 4, stream(method.seed, "smashmix", 0, event.client_ids[0], 0))
    assert len(pairs) == 8
    expected = [4.0] * 4
    for one, other, share in pairs:
        expected[event.client_ids[one]] += 4 * share
        expected[event.client_ids[other]] += 4 * (1 - share)
    assert counts_of(recorder)[0] == pytest.approx(expected)
    assert (event.rows, event.synthetic) == (16, 8 * 4)
    entropy = -sum(c / sum(expected) * math.log(c / sum(expected)) for c in expected)
    assert told[0]["labels/imbalance"] == pytest.approx(1 - entropy / math.log(4))
    _, recorder, _ = run(Mix2SFL, one_class_each(), batch_size=4, smashmix=SmashMix(ratio=0))
    assert counts_of(recorder) == [[4] * 4]


def test_a_step_shared_by_several_uploads_sees_the_labels_of_all() -> None:
    told, recorder, _ = run(SFL, one_class_each(), batch_size=4, dynamics=Dynamics(server_steps=2))
    assert sorted(sorted(counts) for counts in counts_of(recorder)) == [[0, 0, 4, 4]] * 2
    assert imbalances(told) == [(pytest.approx(1 / 2), pytest.approx(0, abs=1e-12))]


@pytest.mark.parametrize("cls", METHODS)
def test_labels_are_those_of_the_rows_of_a_step(cls: Any) -> None:
    _, recorder, _ = run(cls, rows((5, 4, 9, 6)), 2, batch_size=4, participants=4, **rich_of(cls))
    mixed = cls is Mix2SFL
    for event, counts in zip(recorder.of(events.ServerStep), counts_of(recorder), strict=True):
        assert sum(counts) == pytest.approx(event.rows) or (mixed and sum(counts) > event.rows)


def test_only_due_rounds_are_told_and_large_rounds_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Told(every=2)
    fit(build(SFL, batch_size=2), one_class_each(), 3, [watcher])
    assert [bool(scalars) for scalars in watcher.told] == [True, False, True]
    monkeypatch.setattr("lightning_sfl.callbacks.label_imbalance.PENDING_LIMIT", 3)
    parts = Told()
    fit(build(SFL, batch_size=2), one_class_each(), 1, [parts])
    assert imbalances(parts.told) == imbalances(watcher.told[:1])


def test_nobody_told_nothing_gathered() -> None:
    """Looking labels up costs nothing where no callback hears of server steps."""
    method = fit(build(Centralized, batch_size=4), one_class_each())
    method.listen(0)
    assert method.server_turn(method.plan(0).batches[0][:1]).labels == ()
