"""Who starts the processes: Lightning, `fabric run`, or torchrun; and how many there are to be.

`fabric run` says what it was told in LT_ variables and then does as torchrun does, which counts in WORLD_SIZE and the
like. A Trainer that does not look there would train on its own in every process, and nobody would notice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from lightning_sfl.core.errors import require
from lightning_sfl.placement.choice import mode_for
from lightning_sfl.placement.settings import Placement
from lightning_sfl.placement.strategy import SplitStrategy


def honour(trainer: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Write what a launcher has decided into the settings of the Trainer; they may not say otherwise."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return
    by = "fabric run" if environment.get("LT_CLI_USED") == "1" else "torchrun"
    decided: dict[str, Any] = {
        "devices": int(environment["LOCAL_WORLD_SIZE"]),
        "num_nodes": int(environment["GROUP_WORLD_SIZE"]),
        "accelerator": environment.get("LT_ACCELERATOR"),
        "precision": environment.get("LT_PRECISION"),
    }
    named = environment.get("LT_STRATEGY", "auto")
    require(named == "auto", "strategy", named, "none: leave --strategy out of `fabric run`, the halves have their own")
    for key, value in decided.items():
        if value is not None:
            unsaid = trainer[key] in (None, 1, "1", "auto")
            require(unsaid or str(trainer[key]) == str(value), f"trainer.{key}", trainer[key], f"{by} has set {value}")
            trainer[key] = value


def num_processes(trainer: Any) -> int:
    """Processes on all nodes together, for these settings of the Trainer."""
    devices = trainer["devices"]
    if isinstance(devices, list):
        count = len(devices)
    elif str(devices) in ("auto", "-1"):
        count = max(1, torch.cuda.device_count()) if trainer["accelerator"] in ("auto", "gpu", "cuda") else 1
    else:
        count = int(devices)
    nodes: int = trainer["num_nodes"]
    return count * nodes


def strategy_for(placement: Placement, processes: int) -> Any:
    """Lightning's strategy for so many processes."""
    alone = processes == 1
    apart = f"{placement.mode} with several processes, such as --trainer.devices 2"
    require(not (alone and placement.mode == "roles"), "placement.mode", placement.mode, apart)
    together = f"local is one process, and these are {processes}: auto, sharded, gathered or roles"
    require(alone or placement.mode != "local", "placement.mode", placement.mode, together)
    return "auto" if alone else SplitStrategy(placement)


def check_placement(trainer: Any, placement: Placement, method: Any, data: Any) -> None:
    """Refuse, before a folder is made, a mode that would be wrong for this method and network."""
    if num_processes(trainer) > 1:
        mode_for(placement, method, data.example())
