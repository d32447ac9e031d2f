"""With a single client every method is centralized training of that client's rows. Bitwise but for FedSGD."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_sfl.methods import (
    SFL,
    SFLV1,
    SFLV2,
    Centralized,
    FedAvg,
    FedSGD,
    MiniBatchSFL,
    SplitLearning,
    SplitMethod,
)
from tests.tiny import build, differing, fit, furthest, network, rows, sgd, whole

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum and dropout": {"optimizer": sgd(0.05, 0.9), "net": {"dropout": 0.3}},
    "batch norm, one row left over": {"net": {"norm": True}, "size": 9},
    "adam, two passes": {"optimizer": torch.optim.Adam, "local_epochs": 2},
    "all rows at once": {"batch_size": None, "local_steps": 3},
}


def trained(cls: type[SplitMethod], case: dict[str, Any]) -> dict[str, torch.Tensor]:
    options = {"batch_size": 4} | {k: v for k, v in case.items() if k not in ("net", "size", "optimizer")}
    optimizer = case.get("optimizer", sgd())
    options |= {"client_optimizer": optimizer, "server_optimizer": optimizer}
    return whole(fit(build(cls, network(**case.get("net", {})), **options), rows([case.get("size", 11)]), rounds=3))


@pytest.mark.parametrize("cls", [SplitLearning, SFL, SFLV1, SFLV2, MiniBatchSFL, FedAvg])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_is_centralized(case: dict[str, Any], cls: type[SplitMethod]) -> None:
    assert differing(trained(cls, case), trained(Centralized, case)) == []


@pytest.mark.parametrize("norm", [False, True])
def test_fedsgd_is_one_full_batch_step(norm: bool) -> None:
    case = {"batch_size": None, "net": {"norm": norm}}
    assert furthest(trained(FedSGD, case), trained(Centralized, case)) == 0
