"""SFL-V1 is FedAvg of the whole network: nothing couples its clients, wherever the network is cut. Bitwise."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from lightning_sfl.methods import SFLV1, FedAvg, SplitMethod
from tests.tiny import CUTS, build, differing, fit, network, rows, sgd, whole

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"optimizer": sgd(0.05, 0.9)},
    "adam": {"optimizer": torch.optim.Adam},
    "dropout": {"net": {"dropout": 0.3}},
    "unequal sizes": {"sizes": (1, 17, 6, 3)},
    "equal sizes, two passes": {"sizes": (8, 8, 8), "local_epochs": 2},
    "local steps": {"sizes": (3, 9), "local_steps": 5},
    "batch norm": {"net": {"norm": True}, "sizes": (8, 4, 12)},
    "batch norm, one row left over": {"net": {"norm": True}, "sizes": (5, 9, 1)},
    "everything": {"net": {"norm": True, "dropout": 0.2}, "sizes": (5, 9, 2), "optimizer": sgd(0.05, 0.9)},
    "rows as weights, some take part": {"sizes": (5, 9, 2, 7), "weighting": "rows", "participants": 2},
    "shuffled": {"sizes": (5, 9, 2), "client_order": "shuffled"},
}


@cache
def trained(cls: type[SplitMethod], cut_layer: str, name: str) -> dict[str, torch.Tensor]:
    case = CASES[name]
    options = {key: value for key, value in case.items() if key not in ("net", "sizes", "optimizer")}
    optimizer = case.get("optimizer", sgd())
    options |= {"batch_size": 4, "client_optimizer": optimizer, "server_optimizer": optimizer}
    method = build(cls, network(**case.get("net", {})), cut_layer, **options)
    return whole(fit(method, rows(case.get("sizes", (5, 4, 9))), rounds=2))


@pytest.mark.parametrize("cut_layer", CUTS)
@pytest.mark.parametrize("name", CASES)
def test_at_every_cut(name: str, cut_layer: str) -> None:
    # Each side draws dropout from a stream of its own, so with dropout FedAvg too must be told where the sides meet.
    reference = trained(FedAvg, cut_layer if "dropout" in CASES[name].get("net", {}) else "relu2", name)
    assert differing(trained(SFLV1, cut_layer, name), reference) == []


def test_the_table_could_fail() -> None:
    plain = trained(FedAvg, "relu2", "plain")
    for name in ("momentum", "adam", "dropout", "unequal sizes", "batch norm"):
        assert differing(trained(FedAvg, "relu2", name), plain), name
