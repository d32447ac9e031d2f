"""Settings at which two methods, or two ways of saying the same, must coincide: bitwise unless a bound is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sfl.core.rounds import Batch
from lightning_sfl.core.selection import FixedSchedule
from lightning_sfl.methods import (
    CFL,
    IFCA,
    SFL,
    SFLV1,
    SFLV2,
    Centralized,
    FedAvg,
    FedSGD,
    HoloGrad,
    MiniBatchSFL,
    PerFedAvg,
    Reptile,
    ScaffoldSFL,
    SFLProx,
    SplitLearning,
    SplitMethod,
)
from tests.tiny import CUTS, Rows, build, differing, fit, furthest, network, rows, sgd, whole

State = dict[str, Tensor]
MOMENTUM = {"client_optimizer": sgd(0.05, 0.9), "server_optimizer": sgd(0.05, 0.9)}
RICH = {"dropout": 0.2, "norm": True}


def run(
    cls: type[SplitMethod],
    sizes: tuple[int, ...] = (5, 4, 9),
    rounds: int = 2,
    net: dict[str, Any] | None = None,
    cut_layer: str = "relu1",
    data: Rows | None = None,
    **options: Any,
) -> State:
    dtype = (net or {}).get("dtype", torch.float32)
    method = build(cls, network(**(net or {})), cut_layer, **{"batch_size": 4, **options})
    return whole(fit(method, data or rows(sizes, dtype=dtype), rounds))


class SecondHalf(FedAvg):
    """FedAvg on what is left of each batch without its first half."""

    def take_turn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x, labels = super().take_turn(batch)
        return x[len(x) // 2 :], labels[len(x) // 2 :]


# --- bitwise ----------------------------------------------------------------------------------------------------------

Pair = tuple[Callable[[], State], Callable[[], State]]
BITWISE: dict[str, Pair] = {
    "IFCA of one cluster is FedAvg": (
        lambda: run(IFCA, participants=2, rounds=4, net=RICH, **MOMENTUM, clusters=1),
        lambda: run(FedAvg, participants=2, rounds=4, net=RICH, **MOMENTUM),
    ),
    "CFL whose clients are never at odds is FedAvg": (
        lambda: run(CFL, participants=2, rounds=4, net=RICH, **MOMENTUM, eps2=None),
        lambda: run(FedAvg, participants=2, rounds=4, net=RICH, **MOMENTUM),
    ),
    "Reptile of rate 1 is FedAvg of clients that count alike": (
        lambda: run(Reptile, participants=2, rounds=4, net=RICH, **MOMENTUM),
        lambda: run(FedAvg, participants=2, rounds=4, net=RICH, **MOMENTUM, weighting="uniform"),
    ),
    "Per-FedAvg without adaptation is FedAvg on the second half of each batch": (
        lambda: run(PerFedAvg, participants=2, rounds=4, net=RICH, **MOMENTUM),
        lambda: run(SecondHalf, participants=2, rounds=4, net=RICH, client_optimizer=MOMENTUM["client_optimizer"]),
    ),
    "nor do its second derivatives count then": (
        lambda: run(PerFedAvg, rounds=4, net=RICH, **MOMENTUM, variant="hf"),
        lambda: run(SecondHalf, rounds=4, net=RICH, client_optimizer=MOMENTUM["client_optimizer"]),
    ),
    "SFLProx without a term is SFL": (
        lambda: run(SFLProx, participants=2, rounds=4, net=RICH, **MOMENTUM, prox_mu=0.0),
        lambda: run(SFL, participants=2, rounds=4, net=RICH, **MOMENTUM),
    ),
    "ScaffoldSFL is SFL as long as all clients are new": (
        lambda: run(ScaffoldSFL, rounds=1, net=RICH, local_epochs=2),
        lambda: run(SFL, rounds=1, net=RICH, local_epochs=2),
    ),
    "SFL-V2 with one participant is SFL": (
        lambda: run(SFLV2, participants=1, rounds=4, net=RICH, **MOMENTUM),
        lambda: run(SFL, participants=1, rounds=4, net=RICH, **MOMENTUM),
    ),
    "split learning with one participant is SFL": (
        lambda: run(SplitLearning, participants=1, rounds=4, net=RICH, **MOMENTUM),
        lambda: run(SFL, participants=1, rounds=4, net=RICH, **MOMENTUM),
    ),
    "MiniBatch-SFL with one participant is SFL": (
        lambda: run(MiniBatchSFL, participants=1, rounds=4, net=RICH, **MOMENTUM),
        lambda: run(SFL, participants=1, rounds=4, net=RICH, **MOMENTUM),
    ),
    "SFL-V1 with one participant is SFL": (
        lambda: run(SFLV1, participants=1, rounds=4, net=RICH, **MOMENTUM),
        lambda: run(SFL, participants=1, rounds=4, net=RICH, **MOMENTUM),
    ),
    "SFL whose clients have one batch each is SFL-V2": (
        lambda: run(SFL, batch_size=None, net=RICH, **MOMENTUM),
        lambda: run(SFLV2, batch_size=None, net=RICH, **MOMENTUM),
    ),
    "equal clients: uniform weights are weights by samples": (
        lambda: run(FedAvg, sizes=(6, 6, 6), weighting="uniform"),
        lambda: run(FedAvg, sizes=(6, 6, 6), weighting="samples"),
    ),
    "whole passes: weights by rows are weights by samples": (
        lambda: run(SFLV1, weighting="rows", local_epochs=2),
        lambda: run(SFLV1, weighting="samples", local_epochs=2),
    ),
    "local epochs are so many local steps": (
        lambda: run(SFL, sizes=(7, 8, 5), local_epochs=3, net=RICH),
        lambda: run(SFL, sizes=(7, 8, 5), local_steps=6, net=RICH),
    ),
    "a batch larger than the client is all of its rows": (
        lambda: run(SFLV2, batch_size=50),
        lambda: run(SFLV2, batch_size=None),
    ),
    "more participants than clients is all of them": (
        lambda: run(MiniBatchSFL, participants=9),
        lambda: run(MiniBatchSFL, participants=3),
    ),
    "FedSGD in another cut": (lambda: run(FedSGD, cut_layer="fc1"), lambda: run(FedSGD, cut_layer="relu2")),
    "FedAvg in another cut": (lambda: run(FedAvg, cut_layer="fc1"), lambda: run(FedAvg, cut_layer="relu2")),
    "centralized in another cut": (
        lambda: run(Centralized, cut_layer="fc1", **MOMENTUM),
        lambda: run(Centralized, cut_layer="relu2", **MOMENTUM),
    ),
    "split learning of clients that each have a fresh optimizer is SFL-V2 when only one has data": (
        lambda: run(SplitLearning, sizes=(0, 9, 0), **MOMENTUM),
        lambda: run(SFLV2, sizes=(0, 9, 0), **MOMENTUM),
    ),
    "bounds that nothing exceeds do not change anything": (
        lambda: run(SFL, client_clip=1e6, server_clip=1e6),
        lambda: run(SFL),
    ),
}


@pytest.mark.parametrize("pair", BITWISE.values(), ids=list(BITWISE))
def test_bitwise(pair: Pair) -> None:
    one, other = pair
    assert differing(one(), other()) == []


@pytest.mark.parametrize("cut_layer", CUTS)
def test_a_schedule_of_the_drawn_participants_changes_nothing(cut_layer: str, tmp_path: Path) -> None:
    drawn = build(SFL, participants=2, batch_size=4, cut_layer=cut_layer)
    fit(drawn, rows((5, 4, 9, 3)), rounds=3)
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(drawn.schedule(3)))
    listed = build(SFL, participants=2, batch_size=4, cut_layer=cut_layer, selection=FixedSchedule(str(path)))
    fit(listed, rows((5, 4, 9, 3)), rounds=3)
    assert differing(whole(listed), whole(drawn)) == []


# --- up to the order of sums ------------------------------------------------------------------------------------------

EXACT = {"dtype": torch.float64}
CLOSE: dict[str, Pair] = {
    "FedSGD is FedAvg with one full batch": (
        lambda: run(FedSGD, net=EXACT, server_optimizer=sgd()),
        lambda: run(FedAvg, net=EXACT, batch_size=None, client_optimizer=sgd()),
    ),
    "FedSGD is gradient descent on the pooled rows": (
        lambda: run(FedSGD, net=EXACT, rounds=4),
        lambda: run(Centralized, net=EXACT, rounds=4, batch_size=None),
    ),
    "FedSGD with lasting momentum is momentum on the pooled rows": (
        lambda: run(FedSGD, net=EXACT, rounds=4, server_optimizer=sgd(0.1, 0.9), persist_server_optimizer=True),
        lambda: run(Centralized, net=EXACT, rounds=1, batch_size=None, local_steps=4,
                    client_optimizer=sgd(0.1, 0.9), server_optimizer=sgd(0.1, 0.9)),
    ),
    "HoloGrad with as many orthonormal directions as parameters is FedSGD": (
        lambda: run(HoloGrad, net=EXACT, rounds=4),
        lambda: run(FedSGD, net=EXACT, rounds=4),
    ),
    "MiniBatch-SFL, one step and weights by rows, is gradient descent on the pooled rows": (
        lambda: run(MiniBatchSFL, net=EXACT, rounds=4, batch_size=None, weighting="rows"),
        lambda: run(Centralized, net=EXACT, rounds=4, batch_size=None),
    ),
    "SFL-V1, one plain step, is MiniBatch-SFL": (
        lambda: run(SFLV1, net=EXACT, local_steps=1, weighting="rows"),
        lambda: run(MiniBatchSFL, net=EXACT, local_steps=1, weighting="rows"),
    ),
    "with a server that does not learn, MiniBatch-SFL is SFL": (
        lambda: run(MiniBatchSFL, net=EXACT, server_optimizer=sgd(0.0)),
        lambda: run(SFL, net=EXACT, server_optimizer=sgd(0.0)),
    ),
    "with a server that does not learn, SFL is SFL-V1": (
        lambda: run(SFL, net=EXACT, server_optimizer=sgd(0.0)),
        lambda: run(SFLV1, net=EXACT, server_optimizer=sgd(0.0)),
    ),
    "with a server that does not learn, SFL-V2 is FedAvg of the client halves": (
        lambda: run(SFLV2, net=EXACT | {"dropout": 0.2}, server_optimizer=sgd(0.0)),
        lambda: run(SFLV1, net=EXACT | {"dropout": 0.2}, server_optimizer=sgd(0.0)),
    ),
    "with clients that do not learn, split learning is SFL-V2": (
        lambda: run(SplitLearning, net=EXACT, client_optimizer=sgd(0.0)),
        lambda: run(SFLV2, net=EXACT, client_optimizer=sgd(0.0)),
    ),
    "a small slice is a small step: concat_mean at n times the rate is local_mean": (
        lambda: run(MiniBatchSFL, sizes=(4, 4, 4), net=EXACT, client_gradient_scale="concat_mean",
                    client_optimizer=sgd(0.3)),
        lambda: run(MiniBatchSFL, sizes=(4, 4, 4), net=EXACT, client_optimizer=sgd(0.1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("pair", CLOSE.values(), ids=list(CLOSE))
def test_close(pair: Pair) -> None:
    one, other = pair
    assert furthest(one(), other()) < 1e-12


@pytest.mark.parametrize("cls", [FedAvg, FedSGD, HoloGrad, SFLV1, MiniBatchSFL, Centralized])
def test_relabelled_clients(cls: type[SplitMethod]) -> None:
    """With full batches nothing but the order of sums can depend on who is called what."""
    data = rows((5, 4, 9), dtype=torch.float64)
    owned = data.population.rows
    renamed = Rows(data.population.x, data.population.y, [owned[2], owned[0], owned[1]])
    options = {"net": EXACT, "batch_size": None, "local_epochs": 2}
    assert furthest(run(cls, data=data, **options), run(cls, data=renamed, **options)) < 1e-12


@pytest.mark.parametrize("cls", [SplitLearning, SFL, SFLV2])
def test_relabelled_clients_meet_the_server_in_another_order(cls: type[SplitMethod]) -> None:
    data = rows((5, 4, 9), dtype=torch.float64)
    owned = data.population.rows
    renamed = Rows(data.population.x, data.population.y, [owned[2], owned[0], owned[1]])
    options = {"net": EXACT, "batch_size": None}
    assert furthest(run(cls, data=data, **options), run(cls, data=renamed, **options)) > 1e-4


@pytest.mark.parametrize("factor", [0.25, 3.0, 1e6])
def test_only_ratios_of_weights_matter(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(SFL)
    own = SplitMethod.weights
    monkeypatch.setattr(SplitMethod, "weights", lambda self, plan: [factor * w for w in own(self, plan)])
    scaled = run(SFL)
    assert furthest(scaled, plain) < 1e-6
    assert factor != 0.25 or differing(scaled, plain) == []


def test_a_client_split_in_two_leaves_the_joint_server_step() -> None:
    data = rows((5, 4, 9), dtype=torch.float64)
    owned = data.population.rows
    split = Rows(data.population.x, data.population.y, [owned[0], owned[1], owned[2][:3], owned[2][3:]])
    options = {"net": EXACT, "batch_size": None, "rounds": 1, "weighting": "rows"}
    assert furthest(run(MiniBatchSFL, data=data, **options), run(MiniBatchSFL, data=split, **options)) < 1e-12
    assert furthest(run(SFL, data=data, **options), run(SFL, data=split, **options)) > 1e-4


def test_identical_clients_average_to_any_of_them() -> None:
    data = rows((9,), dtype=torch.float64)
    x, y = data.population.x.repeat(3, 1), data.population.y.repeat(3)
    copies = Rows(x, y, [range(9), range(9, 18), range(18, 27)])
    options = {"net": EXACT, "batch_size": None, "local_epochs": 3}
    assert furthest(run(FedAvg, data=copies, **options), run(FedAvg, data=data, **options)) < 1e-12
