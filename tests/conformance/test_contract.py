"""One contract for every method that the package exports: what a user may count on, whichever name the config holds."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sfl.core import events
from lightning_sfl.core.errors import CheckpointError, NonFiniteError
from lightning_sfl.methods import SplitMethod
from tests.every_method import ASYNCHRONOUS, METHODS, rich_of
from tests.tiny import Recorder, Rows, build, differing, fit, network, rows, sgd, trainer, weights, whole

SIZES = (5, 4, 9, 2)


def decaying(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)


RICH: dict[str, Any] = {
    "client_optimizer": sgd(0.1, 0.9),
    "server_optimizer": sgd(0.1, 0.9),
    "client_scheduler": decaying,
    "server_scheduler": decaying,
    "participants": 3,
    "batch_size": 4,
}


def rich(cls: type[SplitMethod], **options: Any) -> SplitMethod:
    """With momentum, schedules, dropout and batch normalisation, and fewer participants than clients."""
    return build(cls, network(dropout=0.2, norm=True), **{**RICH, **rich_of(cls), **options})


@pytest.fixture(params=METHODS, ids=lambda cls: cls.__name__)
def cls(request: pytest.FixtureRequest) -> type[SplitMethod]:
    chosen: type[SplitMethod] = request.param
    return chosen


# --- the same run twice -----------------------------------------------------------------------------------------------


def test_a_run_repeats_bit_for_bit_and_leaves_the_generators_alone(cls: type[SplitMethod]) -> None:
    first, second = Recorder(), Recorder()
    one = whole(fit(rich(cls), rows(SIZES), 2, [first]))
    torch.manual_seed(99)
    before = generators()
    other = whole(fit(rich(cls), rows(SIZES), 2, [second]))
    after = generators()
    assert differing(one, other) == []
    assert first.losses == second.losses
    assert first.traffic_bytes == second.traffic_bytes
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def generators() -> tuple[Tensor, Any, Any]:
    """States of torch's, NumPy's and Python's own global generators."""
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002


def test_another_seed_is_another_run(cls: type[SplitMethod]) -> None:
    assert differing(whole(fit(rich(cls), rows(SIZES))), whole(fit(rich(cls, seed=1), rows(SIZES)))) != []


def test_every_round_moves_both_halves_and_all_stays_finite(cls: type[SplitMethod]) -> None:
    states: list[dict[str, Tensor]] = []

    class Keep(L.Callback):
        def on_round_end(self, module: SplitMethod, event: events.RoundEnd) -> None:
            states.append(whole(module))

    method = fit(rich(cls), rows(SIZES), 3, [Keep()], limit_val_batches=1)
    for earlier, later in zip([dict(network(0.2, norm=True).state_dict()), *states], states, strict=False):
        assert {"fc1.weight", "fc2.weight", "head.weight"} <= {*differing(earlier, later)}
    assert all(bool(t.isfinite().all()) for t in whole(method).values())
    metrics = method.trainer.callback_metrics
    assert {"train/loss", "train/acc", "val/loss", "val/acc"} <= {*metrics}
    assert all(bool(value.isfinite()) for value in metrics.values())


# --- resume -----------------------------------------------------------------------------------------------------------


def checkpointed(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)


@pytest.mark.parametrize("options", [{}, {"persist_server_optimizer": True}, {"client_order": "shuffled"}])
def test_resume_is_exact(cls: type[SplitMethod], options: dict[str, Any], tmp_path: Path) -> None:
    recorder, resumed = Recorder(), Recorder()
    keep = checkpointed(tmp_path)
    wanted = weights(fit(rich(cls, **options), rows(SIZES), 5, [recorder, keep], enable_checkpointing=True))
    for done in (1, 3):
        torch.manual_seed(done)
        again = fit(
            rich(cls, **options),
            rows(SIZES),
            5,
            [resumed, checkpointed(tmp_path)],
            resume=tmp_path / f"epoch={done - 1}.ckpt",
            enable_checkpointing=True,
        )
        assert differing(weights(again), wanted) == []
    assert resumed.losses == recorder.losses[1:] + recorder.losses[3:]


@pytest.fixture
def saved(cls: type[SplitMethod], tmp_path: Path) -> Path:
    fit(rich(cls), rows(SIZES), 1, [checkpointed(tmp_path)], enable_checkpointing=True)
    return tmp_path / "epoch=0.ckpt"


def test_a_checkpoint_is_complete_without_data_and_plain(cls: type[SplitMethod], saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    names = content["state_dict"]
    assert not [name for name in names if "slots." in name]
    assert {name.split(".", 1)[1] for name in names if name.startswith(("client_half.", "server_half."))} == {
        *network(norm=True).state_dict()
    }
    method = rich(cls)
    trainer(1).fit(method, rows(SIZES))
    loaded = cls.load_from_checkpoint(saved, backbone=network(0.2, norm=True), cut_layer="relu1", map_location="cpu")
    x = rows(SIZES).population.x
    for each in (method, loaded):
        each.eval()
    assert torch.equal(loaded(x), method(x))
    predicted = torch.cat(trainer().predict(loaded, rows(SIZES)))  # type: ignore[arg-type]
    assert torch.equal(predicted, method(x).argmax(-1))


STRANGERS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 7}, "seed=0"),
    "cut": ({"cut_layer": "fc1"}, "cut_layer='relu1'"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_foreign_checkpoint_is_refused_in_one_line(cls: type[SplitMethod], case: str, saved: Path) -> None:
    options, named = STRANGERS[case]
    with pytest.raises(CheckpointError, match=re.escape(named)) as refusal:
        fit(rich(cls, **options), rows(SIZES), 2, resume=saved)
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_of_another_method_or_partition_is_refused(cls: type[SplitMethod], saved: Path) -> None:
    other = METHODS[(METHODS.index(cls) + 1) % len(METHODS)]
    with pytest.raises(CheckpointError, match=f"has method='{rich(cls).method_name}'") as refusal:
        fit(rich(other), rows(SIZES), 2, resume=saved)
    assert "\n" not in str(refusal.value)
    with pytest.raises(CheckpointError, match="has partition="):
        fit(rich(cls), rows((4, 5, 9, 2)), 2, resume=saved)


# --- watching ---------------------------------------------------------------------------------------------------------


class Everything(Recorder):
    """Every event of ours, and the hooks for which Lightning's own backward and step are taken."""

    def on_before_backward(self, *arguments: Any) -> None:
        self.events.append("backward")

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        self.events.append("step")


@pytest.mark.parametrize("watcher", [Recorder, Everything])
def test_watching_changes_nothing(cls: type[SplitMethod], watcher: Callable[[], Recorder]) -> None:
    watched = watcher()
    alone = whole(fit(rich(cls), rows(SIZES), 2))
    assert differing(whole(fit(rich(cls), rows(SIZES), 2, [watched])), alone) == []
    assert len(watched.events) > 10
    assert (watcher is Everything) == ("backward" in watched.events) == ("step" in watched.events)


def test_events_tell_a_complete_story(cls: type[SplitMethod]) -> None:
    """Whoever starts ends, nobody steps outside the two, and the round encloses it all."""
    recorder = Recorder()
    fit(rich(cls), rows(SIZES), 1, [recorder])
    story = recorder.events
    assert isinstance(story[0], events.RoundStart)
    assert isinstance(story[-1], events.RoundEnd)
    started = [event.client_id for event in recorder.of(events.ClientStart)]
    ended = [event.client_id for event in recorder.of(events.ClientEnd)]
    assert sorted(started) == sorted(ended)
    assert cls in ASYNCHRONOUS or sorted(started) == sorted(story[0].participants)
    for event in recorder.of(events.ClientEnd):
        visits = [each for each in recorder.of(events.ClientEnd) if each.client_id == event.client_id]
        assert sum(each.steps for each in visits) == recorder.count(events.ClientStep, event.client_id)
        assert event.rows > 0 or not event.finished
    assert recorder.count(events.ClientStep) == recorder.count(events.ClientBackward)
    assert recorder.count(events.ServerStep) == recorder.count(events.ServerBackward)


# --- schedules --------------------------------------------------------------------------------------------------------


def test_schedules_step_once_a_round(cls: type[SplitMethod]) -> None:
    rates: list[list[float]] = []

    class Rates(L.Callback):
        def on_round_start(self, module: SplitMethod, event: events.RoundStart) -> None:
            rates.append([module.optimizer(role).optimizer.param_groups[0]["lr"] for role in module.roles])

    fit(rich(cls), rows(SIZES), 3, [Rates()])
    assert [set(round) for round in rates] == [{0.1}, {0.05}, {0.025}]


# --- what is not finite -----------------------------------------------------------------------------------------------


def poisoned(client: int) -> Rows:
    """All inputs of one client are NaN; the first rows, on which the cut is proven, are sound."""
    data = rows(SIZES)
    data.population.x[torch.from_numpy(data.population.rows[client])] = float("nan")
    return data


class LastServer(L.Callback):
    """Weights of the server half after each of its steps."""

    def __init__(self) -> None:
        self.server: dict[str, Tensor] = {}

    def on_round_start(self, module: SplitMethod, event: events.RoundStart) -> None:
        self.server = weights(module.server_half)

    def on_server_step(self, module: SplitMethod, event: events.ServerStep) -> None:
        self.server = weights(module.server_half)


def test_nan_rows_stop_the_run_before_they_reach_the_weights(cls: type[SplitMethod]) -> None:
    last = LastServer()
    method = build(cls, batch_size=4, participants=4)
    with pytest.raises(NonFiniteError) as stopped:
        fit(method, poisoned(2), 3, [last])
    text = str(stopped.value)
    pooled = method.num_slots == 1
    assert "\n" not in text
    assert f" in {method.method_name}, round 0, client" in text
    assert re.search(r"clients?( \d+,)* (0|2)(, \d+)*, (client|server) half", text)
    assert pooled or re.search(r"clients? [\d, ]*\b2\b", text)
    assert differing(weights(method.client_half), weights(build_cut(cls).client_half)) == []
    assert differing(weights(method.server_half), last.server) == []
    assert all(bool(p.isfinite().all()) for p in method.parameters())


def build_cut(cls: type[SplitMethod]) -> SplitMethod:
    """The method before any training."""
    method = build(cls)
    method.cut(rows().example())
    return method


# --- the source -------------------------------------------------------------------------------------------------------

MEASURING = re.compile(r"\b(metrics?|divergence|alignment|drift|accuracy|self\.log\w*|logger|tensorboard|wandb|csv)\b")


def test_the_method_is_short_and_measures_nothing(cls: type[SplitMethod]) -> None:
    text = Path(inspect.getfile(cls)).read_text(encoding="utf-8")
    assert text.count("\n") < 150
    assert MEASURING.findall(text.lower()) == []


def test_names_are_unique_and_spelt_like_the_file(cls: type[SplitMethod]) -> None:
    name = build(cls).method_name
    assert name == Path(inspect.getfile(cls)).stem
    assert [build(other).method_name for other in METHODS].count(name) == 1
