"""The gradient scale at the cut, as the callback measures it, against the closed form of every method."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sfl.callbacks import CutScale
from lightning_sfl.core import events
from lightning_sfl.core.gradient_shuffle import GradientShuffle
from lightning_sfl.core.mixing import GradMix, SmashMix
from lightning_sfl.methods import (
    GAS,
    SCALA,
    SFL,
    SFLV1,
    SFLV2,
    USFL,
    MiniBatchSFL,
    Mix2SFL,
    MultiSFL,
    SplitLearning,
    SplitMethod,
)
from tests.every_method import METHODS, rich_of
from tests.methods.toy import labelled, toy
from tests.tiny import Recorder, Rows, build, fit, rows, sgd, stretches

STILL = {"client_optimizer": sgd(0.0), "server_optimizer": sgd(0.0)}


class Fork(nn.Module):
    """Two tensors of the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x).relu(), self.inner(x.square())


class Forked(nn.Module):
    """Two tensors cross where it is cut behind `fork`."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.fork, self.head = Fork(), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        main, beside = self.fork(x)
        return self.head(main + beside)


def measured(
    cls: type[SplitMethod], data: Any = None, rounds: int = 1, **options: Any
) -> tuple[dict[str, float], Recorder]:
    """scale_rel of each client in a round, and the round's events."""
    watcher, recorder = CutScale(every=1), Recorder()
    net, cut_layer = options.pop("net", (None, "relu1"))
    fit(build(cls, net, cut_layer, **options), data or rows((5, 4, 9)), rounds, [watcher, recorder])
    return watcher.found.get("scale_rel", {}), recorder


def steps_of(recorder: Recorder) -> list[list[events.CutGradient]]:
    """The messages of each step."""
    steps: list[list[events.CutGradient]] = [[]]
    for event in recorder.events:
        if isinstance(event, events.CutGradient):
            steps[-1].append(event)
        elif isinstance(event, events.ClientBackward):
            steps.append([])
    return [step for step in steps if step]


def joint_share(recorder: Recorder, scaled: bool = False) -> dict[str, float]:
    """B_i / sum B, or N_p B_i / sum B, over the clients of a step; each client's mean over its steps."""
    found: dict[str, list[float]] = {}
    for step in steps_of(recorder):
        for event in step:
            share = event.rows / sum(other.rows for other in step)
            found.setdefault(str(event.client_id), []).append(share * (len(step) if scaled else 1))
    return {client: fmean(values) for client, values in found.items()}


@pytest.mark.parametrize("cls", [SplitLearning, SFL, SFLV1, SFLV2, MiniBatchSFL, GAS])
def test_the_mean_over_the_own_batch(cls: type[SplitMethod]) -> None:
    found, recorder = measured(cls, batch_size=4, **rich_of(cls))
    assert found == pytest.approx(dict.fromkeys(found, 1.0), rel=1e-5)
    assert {event.rows for event in recorder.of(events.CutGradient)} == {1, 4}


def test_a_client_of_one_class_under_the_prior_of_gas() -> None:
    """Classes that it does not have get logits 27.6 lower, so that it is as sure as single precision can be."""
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))
    one_class_each = Rows(x, torch.arange(12) // 4, stretches([4, 4, 4]))
    found, recorder = measured(GAS, one_class_each, rounds=3, batch_size=4, prior_exponent=1.0)
    assert max(float(event.raw[0].abs().max()) for event in recorder.of(events.CutGradient)) < 1e-10
    assert found == pytest.approx(dict.fromkeys(found, 1.0), rel=1e-4)


@pytest.mark.parametrize("strategy", ["none", "random", "inplace"])
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_that_usfl_exchanges_keep_the_scale_of_the_joint_mean(strategy: Any, scaled: bool) -> None:
    shuffle = GradientShuffle(strategy)
    options = {"server_batch_size": 7, "scale_client_gradient": scaled, "gradient_shuffle": shuffle, "local_epochs": 2}
    found, recorder = measured(USFL, **options)
    assert found == pytest.approx(joint_share(recorder, scaled), rel=1e-5)
    assert len({tuple(event.rows for event in step) for step in steps_of(recorder)}) > 1
    foreign = [not set(map(tuple, e.sent[0].tolist())) <= set(map(tuple, e.raw[0].tolist()))
               for e in recorder.of(events.CutGradient)]  # fmt: skip
    assert any(foreign) == (strategy != "none" or scaled)


def test_exchanged_rows_of_a_cut_of_two_parts() -> None:
    """Only the first part is exchanged; the second stays in its place."""
    shuffle = GradientShuffle("random", "activation_only")
    found, recorder = measured(USFL, gradient_shuffle=shuffle, batch_size=4, net=(Forked(), "fork"))
    assert {len(event.raw) for event in recorder.of(events.CutGradient)} == {2}
    assert found == pytest.approx(joint_share(recorder), rel=1e-5)


def test_slices_of_the_joint_mean() -> None:
    found, recorder = measured(MiniBatchSFL, batch_size=4, client_gradient_scale="concat_mean")
    assert found == pytest.approx(joint_share(recorder), rel=1e-5)
    found, recorder = measured(Mix2SFL, batch_size=4, gradmix=GradMix(phi=0.0))
    assert found == pytest.approx(joint_share(recorder), rel=1e-5)


@pytest.mark.parametrize("adjusted", [True, False])
def test_slices_of_scala(adjusted: bool) -> None:
    """Alike with adjusted logits: the share is of the rows, whatever the loss; one upload a step has its own mean."""
    options = {"server_batch_size": 7, "local_epochs": 2, "logit_adjustment": adjusted}
    found, recorder = measured(SCALA, rows((5, 4, 12)), **options)
    assert found == pytest.approx(joint_share(recorder), rel=1e-4)
    assert len({*found.values()}) > 1
    if adjusted:
        found, _ = measured(SCALA, rows((5, 4, 12)), concatenation=False, **options)
        assert found == pytest.approx(dict.fromkeys(found, 1.0), rel=1e-4)


@pytest.mark.parametrize(("reduce", "expected"), [("sum", 1.0), ("mean", 1 / 3)])
def test_gradmix_of_three_equal_slices(reduce: Any, expected: float) -> None:
    """Each slice is a third of the own mean; their sum is the own mean again."""
    options = {"gradmix": GradMix(phi=1.0, reduce=reduce), "smashmix": SmashMix(ratio=0), "batch_size": None}
    found, _ = measured(Mix2SFL, labelled([0, 0], [0, 0], [0, 0]), net=(toy(), "lower"), **options, **STILL)
    assert found == pytest.approx(dict.fromkeys("012", expected), rel=1e-5)


def test_replayed_rows_thin_the_own_ones_out() -> None:
    found, recorder = measured(MultiSFL, rows((8,) * 5), 3, participants=2, batch_size=4, **rich_of(MultiSFL))
    shares: dict[str, list[float]] = {}
    for event in [event for event in recorder.of(events.CutGradient) if event.round == 2]:
        shares.setdefault(str(event.client_id), []).append(event.rows / (event.rows + event.replayed))
    assert found == pytest.approx({client: fmean(values) for client, values in shares.items()}, rel=1e-5)
    assert min(found.values()) < 0.9


@pytest.mark.parametrize("cls", [m for m in METHODS if m.__name__ in ("FedAvg", "FedSGD", "Centralized")])
def test_without_a_cut_there_is_no_scale(cls: type[SplitMethod]) -> None:
    assert measured(cls)[0] == {}
