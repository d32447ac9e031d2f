"""Which mode a run gets, and which are refused with a reason and a way out."""

from __future__ import annotations

import re
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sfl.core.aggregators import Median
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.fed_cbs import FedCBS
from lightning_sfl.core.gradient_shuffle import GradientShuffle
from lightning_sfl.core.oort import Oort
from lightning_sfl.methods import (
    CA2FL,
    CFL,
    GAS,
    IFCA,
    SCALA,
    SFL,
    SFLV1,
    SFLV2,
    USFL,
    Centralized,
    FedAsync,
    FedAvg,
    FedBuff,
    FedSGD,
    HoloGrad,
    MiniBatchSFL,
    Mix2SFL,
    MultiSFL,
    PerFedAvg,
    Reptile,
    ScaffoldSFL,
    SFLProx,
    SplitLearning,
    SplitMethod,
)
from lightning_sfl.placement import Placement, SplitStrategy
from lightning_sfl.placement.apart import ApartStrategy
from lightning_sfl.placement.choice import mode_for
from lightning_sfl.placement.launch import honour, num_processes, strategy_for
from tests.tiny import build, fit, network, rows

ALWAYS = [SFLV1, FedAvg, PerFedAvg, Reptile]
IN_SUMS = [MiniBatchSFL, USFL, SCALA]
NEVER = [SFL, SFLV2, SplitLearning, Mix2SFL, MultiSFL, GAS, FedSGD, HoloGrad, FedAsync, FedBuff, IFCA, CFL]
NEVER += [ScaffoldSFL, SFLProx, CA2FL]


def mode(cls: type[SplitMethod], asked: Any = "auto", net: nn.Module | None = None, **options: Any) -> str:
    method, data = build(cls, net, **options), rows()
    method.prepare(data, "fit")
    before = [tensor.clone() for tensor in method.state_dict().values()]
    generator = torch.get_rng_state()
    found = mode_for(Placement(asked), method, data.example())
    assert all(torch.equal(a, b) for a, b in zip(before, method.state_dict().values(), strict=True))
    assert torch.equal(generator, torch.get_rng_state())
    return found


@pytest.mark.parametrize("cls", [*ALWAYS, *IN_SUMS])
def test_sharded_by_default_where_it_is_exact(cls: type[SplitMethod]) -> None:
    assert mode(cls) == "sharded"


@pytest.mark.parametrize("cls", NEVER)
def test_gathered_otherwise(cls: type[SplitMethod]) -> None:
    assert mode(cls) == "gathered"
    with pytest.raises(ConfigError, match=r"placement.mode='sharded' is not allowed: .*use gathered or roles"):
        mode(cls, "sharded")


@pytest.mark.parametrize(("net", "word"), [({"norm": True}, "batch normalisation"), ({"dropout": 0.2}, "dropout")])
def test_layers_that_join_rows_are_refused_behind_the_cut(net: dict[str, Any], word: str) -> None:
    for cls in IN_SUMS:
        assert mode(cls, net=network(**net)) == "gathered"
        with pytest.raises(ConfigError, match=word):
            mode(cls, "sharded", network(**net))
    for cls in ALWAYS:
        assert mode(cls, "sharded", network(**net)) == "sharded"


class Centred(nn.Module):
    """Joins the rows in a way that no name gives away."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=0)


def test_any_layer_that_joins_rows_is_found_by_trying() -> None:
    net = nn.Sequential(OrderedDict([*network().named_children()][:4], centred=Centred(), head=nn.Linear(7, 4)))
    with pytest.raises(ConfigError, match="a layer, which joins the rows of all clients"):
        mode(MiniBatchSFL, "sharded", net)


def test_shuffled_gradients_are_not_sums() -> None:
    assert mode(USFL, gradient_shuffle=GradientShuffle("random")) == "gathered"


def test_the_prior_of_a_joint_step_is_of_the_rows_of_all_processes() -> None:
    assert mode(SCALA, logit_adjustment=True) == "sharded"
    assert mode(SCALA, logit_adjustment=True, concatenation=False) == "gathered"
    with pytest.raises(ConfigError, match="SCALA: without concatenation the server half learns from uploads in turn"):
        mode(SCALA, "sharded", logit_adjustment=True, concatenation=False)


def test_roles_and_gathered_as_asked() -> None:
    assert mode(MiniBatchSFL, "roles") == "roles"
    assert mode(MiniBatchSFL, "gathered") == "gathered"


def test_pooled_rows_are_one_process() -> None:
    with pytest.raises(ConfigError, match=r"model='Centralized' is not allowed: one process: "):
        mode(Centralized)


def test_what_looks_at_clients_alone_or_belongs_to_them_is_not_summed() -> None:
    assert mode(MiniBatchSFL, separate_forward=True) == "gathered"
    assert mode(FedAvg, net=network(norm=True), bn_buffers="local") == "gathered"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"mode": "split"}, "placement.mode"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Placement(**options)


def test_one_process_and_several() -> None:
    assert strategy_for(Placement(), settings()) == "auto"
    assert strategy_for(Placement("gathered"), settings(devices=2)).placement.mode == "gathered"
    with pytest.raises(ConfigError, match=r"placement.mode='roles' is not allowed: roles with several processes"):
        strategy_for(Placement("roles"), settings())


CARDS = r"placement.mode='local' is not allowed: local is one device, or two GPUs, .*trainer.devices={} and {} GPUs"


def test_two_devices_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    local = Placement("local")
    with pytest.raises(ConfigError, match=CARDS.format(2, 0)):
        strategy_for(local, settings(devices=2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for devices in (2, "2", "auto", [0, 1]):
        found = strategy_for(local, settings(devices=devices), {})
        assert isinstance(found, ApartStrategy)
        assert (found.root_device, found.server_device) == (torch.device("cuda:0"), torch.device("cuda:1"))
    assert strategy_for(local, settings(devices=[1, 0]), {}).root_device == torch.device("cuda:1")
    assert isinstance(strategy_for(Placement(), settings(devices=2), {}), SplitStrategy)
    for devices in (3, [0, 2], [0, 0]):
        with pytest.raises(ConfigError, match=CARDS.format(re.escape(str(devices)), 2)):
            strategy_for(local, settings(devices=devices), {})
    with pytest.raises(ConfigError, match=CARDS.format(2, 0)):
        strategy_for(local, settings(devices=2, accelerator="cpu"), {})
    for given, environment in (({"devices": 1, "num_nodes": 2}, {}), ({"devices": 2}, TORCHRUN)):
        with pytest.raises(ConfigError, match=r"local is one process, and these are \d: auto"):
            strategy_for(local, settings(**given), environment)


# --- launchers ------------------------------------------------------------------------------------------------------


class Settings(SimpleNamespace):
    """The Trainer's, as the parser holds them."""

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)


def settings(**options: Any) -> Settings:
    return Settings(**{"devices": 1, "num_nodes": 1, "accelerator": "auto", "precision": None, **options})


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3"}
FABRIC = {**TORCHRUN, "LT_CLI_USED": "1", "LT_DEVICES": "2", "LT_ACCELERATOR": "cpu", "LT_PRECISION": "64-true"}


def test_what_a_launcher_has_decided() -> None:
    trainer = settings()
    honour(trainer, {"WORLD_SIZE": "2"})
    assert trainer == settings()
    honour(trainer, TORCHRUN)
    assert trainer == settings(devices=2, num_nodes=3)
    assert num_processes(trainer) == 6
    trainer = settings(devices="2")
    honour(trainer, FABRIC)
    assert trainer == settings(devices=2, num_nodes=3, accelerator="cpu", precision="64-true")


@pytest.mark.parametrize(
    ("given", "environment", "word"),
    [
        ({"devices": 3}, TORCHRUN, "trainer.devices=3 is not allowed: torchrun has set 2"),
        ({"num_nodes": 2}, FABRIC, "trainer.num_nodes=2 is not allowed: fabric run has set 3"),
        ({"precision": "bf16-mixed"}, FABRIC, "trainer.precision='bf16-mixed' is not allowed: fabric run has set 64"),
        ({}, {**FABRIC, "LT_STRATEGY": "ddp"}, "strategy='ddp' is not allowed: none: leave --strategy out"),
    ],
)
def test_settings_may_not_say_otherwise(given: dict[str, Any], environment: dict[str, str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        honour(settings(**given), environment)


def test_who_looks_at_all_halves_needs_them_all() -> None:
    assert mode(FedAvg, aggregator=Median()) == "gathered"
    with pytest.raises(ConfigError, match="aggregator Median looks at the halves of all clients: use gathered"):
        mode(FedAvg, "sharded", aggregator=Median())
    with pytest.raises(ConfigError, match="judges clients by their server copies, too: use gathered"):
        mode(SFLV1, "roles", aggregator=Median())
    assert mode(FedAvg, "roles", aggregator=Median()) == "roles"


def test_a_selection_that_learns_from_losses_needs_them_all() -> None:
    assert mode(SFL, selection=Oort()) == "gathered"
    assert mode(MiniBatchSFL, selection=Oort()) == "gathered"
    with pytest.raises(ConfigError, match="Oort learns from losses, which clients do not see: use gathered"):
        mode(SFL, "roles", selection=Oort())
    with pytest.raises(ConfigError, match="model='FedAvg' is not allowed: one process: Oort learns from losses"):
        mode(FedAvg, selection=Oort())


def test_a_selection_that_goes_by_the_labels_is_the_same_in_every_process() -> None:
    for asked in ("sharded", "gathered", "roles"):
        assert mode(MiniBatchSFL, asked, selection=FedCBS()) == asked


def test_a_precision_that_scales_losses_is_refused_from_python_too() -> None:
    with pytest.raises(ConfigError, match="precision='16-true' is not allowed: one of 32-true, 64-true, bf16-mixed"):
        fit(build(SFL), precision="16-true")
