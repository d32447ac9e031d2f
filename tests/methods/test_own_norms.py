"""FedBN, `bn_buffers: local`: who keeps which layers, what is merged and judged all the same, what a resume knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, ClientStart, RoundEnd, RoundStart
from lightning_sfl.core.own_layers import norm_state
from lightning_sfl.methods import GAS, SFL, SFLV1, FedAvg, MiniBatchSFL, SplitMethod
from tests.every_method import ASYNCHRONOUS, METHODS
from tests.tiny import CUTS, Recorder, build, differing, fit, network, rows, sgd, weights, whole

LOCAL = [cls for cls in METHODS if not cls.why_not_local]
SIZES = (5, 4, 9, 6)
OWN = {f"bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


class Merged(Recorder):
    """Also keeps the merged halves before and after every round."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []

    def on_round_start(self, module: SplitMethod, event: RoundStart) -> None:
        super().on_round_start(module, event)
        self.before.append(weights(event.client_half))

    def on_round_end(self, module: SplitMethod, event: RoundEnd) -> None:
        super().on_round_end(module, event)
        self.after.append(weights(event.client_half))


def made(cls: type[SplitMethod], cut_layer: str = "relu1", **options: Any) -> SplitMethod:
    options = {"participants": 2, "batch_size": 4, "client_optimizer": sgd(0.1, 0.9), **options}
    return build(cls, network(norm=True), cut_layer, **{"bn_buffers": "local", **options})


def test_most_methods_know_it() -> None:
    names = {cls.__name__ for cls in METHODS} - {cls.__name__ for cls in LOCAL}
    assert names == {"SplitLearning", "FedSGD", "HoloGrad", "Centralized", "MultiSFL", "ScaffoldSFL"}


@pytest.mark.parametrize("cls", [cls for cls in LOCAL if cls not in ASYNCHRONOUS])
def test_a_client_goes_on_with_its_own_layers_and_takes_the_others_from_the_merged_half(cls: type[SplitMethod]) -> None:
    recorder = Merged()
    fit(made(cls), rows(SIZES), 6, [recorder])
    last: dict[int, dict[str, Tensor]] = {}
    again = 0
    starts, ends = recorder.of(ClientStart), recorder.of(ClientEnd)
    for index in range(6):
        for event, start in zip(starts, recorder.starts, strict=True):
            if event.round == index:
                own = last.get(event.client_id, recorder.before[index])
                wanted = {name: own[name] if name in OWN else t for name, t in recorder.before[index].items()}
                assert differing(start, wanted) == []
                again += event.client_id in last and differing(own, recorder.before[index]) != []
        last |= {event.client_id: end for event, end in zip(ends, recorder.ends, strict=True) if event.round == index}
    assert again >= 4


@pytest.mark.parametrize("cls", [cls for cls in LOCAL if cls not in ASYNCHRONOUS])
def test_the_network_that_is_judged_has_the_average_of_the_participants(cls: type[SplitMethod]) -> None:
    recorder = Merged()
    fit(made(cls), rows(SIZES), 3, [recorder])
    for index, merged in enumerate(recorder.after):
        ended = [
            (e.weight, end) for e, end in zip(recorder.of(ClientEnd), recorder.ends, strict=True) if e.round == index
        ]
        total = sum(weight for weight, _ in ended)
        for name in OWN - {"bn1.num_batches_tracked"}:
            wanted = sum(weight / total * end[name].double() for weight, end in ended)
            torch.testing.assert_close(merged[name].double(), wanted, rtol=1e-6, atol=1e-6)


def test_asynchronous_clients_find_their_own_layers_when_they_come_again() -> None:
    """A visit that begins, not one that goes on from the round before, starts with what the last one handed in."""
    recorder = Merged()
    method = fit(made(GAS, participants=2, local_steps=1), rows((5, 4, 9)), 8, [recorder])
    last: dict[int, dict[str, Tensor]] = {}
    again = 0
    story = iter(zip(recorder.of(ClientStart), recorder.starts, strict=True))
    finished = iter(zip(recorder.of(ClientEnd), recorder.ends, strict=True))
    for event in recorder.events:
        if isinstance(event, ClientStart):
            _, start = next(story)
            if event.client_id in last:
                own = last[event.client_id]
                assert differing(start, {**start, **{name: own[name] for name in OWN}}) == []
                again += 1
        elif isinstance(event, ClientEnd):
            last[event.client_id] = next(finished)[1]
    assert again >= 4
    assert set(method.own.kept) <= {0, 1, 2}


def test_memory_grows_with_the_clients_seen() -> None:
    recorder = Recorder()
    method = fit(made(SFL, participants=1), rows((4,) * 12), 3, [recorder])
    seen = {event.client_id for event in recorder.of(ClientStart)}
    assert set(method.own.kept) == seen
    assert 1 <= len(seen) <= 3
    assert [set(half) for half in method.own.kept[min(seen)]] == [OWN]
    assert fit(made(SFL, bn_buffers="average"), rows(SIZES), 2).own.kept == {}


@pytest.mark.parametrize("cut_layer", CUTS)
def test_v1_is_still_fedavg(cut_layer: str) -> None:
    """A private server copy is the client's own, too, wherever the cut."""
    options = {"participants": 2, "server_optimizer": sgd(0.1, 0.9)}
    states = [whole(fit(made(cls, cut_layer, **options), rows(SIZES), 4)) for cls in (SFLV1, FedAvg)]
    assert differing(*states) == []
    average = whole(fit(made(FedAvg, cut_layer, bn_buffers="average"), rows(SIZES), 4))
    assert differing(states[1], average) != []


@pytest.mark.parametrize("cls", [cls for cls in LOCAL if cls not in ASYNCHRONOUS])
def test_a_single_client_cannot_tell(cls: type[SplitMethod]) -> None:
    states = [whole(fit(made(cls, bn_buffers=policy), rows((11,)), 3)) for policy in ("local", "average")]
    assert differing(*states) == []


@pytest.mark.parametrize("cls", LOCAL)
def test_resume_is_exact(cls: type[SplitMethod], tmp_path: Path) -> None:
    def trained(resume: Path | None) -> dict[str, Tensor]:
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        method = fit(made(cls), rows(SIZES), 6, [keep], resume, enable_checkpointing=True)
        own = {
            f"{c}.{i}.{n}": t for c, kept in method.own.kept.items() for i, k in enumerate(kept) for n, t in k.items()
        }
        return weights(method) | own

    wanted = trained(None)
    content = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)
    assert content["lightning_sfl"]["memory"]["own_norms"]
    for done in (2, 4):
        assert differing(trained(tmp_path / f"epoch={done - 1}.ckpt"), wanted) == []


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls.why_not_local])
def test_methods_without_clients_of_their_own_refuse(cls: type[SplitMethod]) -> None:
    with pytest.raises(ConfigError, match="bn_buffers='local' is not allowed: average or first: ") as refusal:
        fit(made(cls), rows(SIZES))
    assert "\n" not in str(refusal.value)


def test_nothing_to_keep_is_refused() -> None:
    """Without batch normalisation, or with all of it behind the cut."""
    line = "bn_buffers='local' is not allowed: average or first: clients hold no batch-norm layer, with the cut after "
    for method in (build(SFL, bn_buffers="local"), made(MiniBatchSFL, "fc1"), build(FedAvg, bn_buffers="local")):
        with pytest.raises(ConfigError, match=line):
            fit(method, rows(SIZES))
    fit(made(SFLV1, "fc1"), rows(SIZES))


def test_only_batch_norm_layers_are_own() -> None:
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.LayerNorm(3))
    )
    assert set(norm_state(net)) == {name.replace("bn1", "1.0") for name in OWN}
