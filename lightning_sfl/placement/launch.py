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
from lightning_sfl.placement.apart import ApartStrategy, check_apart
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


def strategy_for(placement: Placement, trainer: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """Lightning's strategy for these settings of the Trainer: one process, two devices in one, or several."""
    processes = num_processes(trainer)
    if processes == 1:
        several = f"{placement.mode} with several processes, such as --trainer.devices 2"
        require(placement.mode != "roles", "placement.mode", placement.mode, several)
        return "auto"
    if placement.mode != "local":
        return SplitStrategy(placement)
    started = "TORCHELASTIC_RUN_ID" in environment or trainer["num_nodes"] > 1
    together = f"local is one process, and these are {processes}: auto, sharded, gathered or roles"
    require(not started, "placement.mode", "local", together)
    return ApartStrategy(*two_cards(trainer))


def two_cards(trainer: Any) -> list[torch.device]:
    """The two GPUs of `placement.mode=local`: for the client halves, and for the server half."""
    known = torch.cuda.device_count() if trainer["accelerator"] in ("auto", "gpu", "cuda") else 0
    given = trainer["devices"]
    count = known if str(given) in ("auto", "-1") or isinstance(given, list) else int(given)
    chosen = given if isinstance(given, list) else list(range(count))
    fits = len(set(chosen)) == len(chosen) == 2 and max(chosen) < known
    found = f"with trainer.devices={given} and {known} GPUs to be had, auto, sharded, gathered or roles"
    require(fits, "placement.mode", "local", f"local is one device, or two GPUs, one for each half: {found}")
    return [torch.device("cuda", index) for index in chosen]


def check_placement(trainer: Any, placement: Placement, method: Any, data: Any) -> None:
    """Refuse, before a folder is made, a mode that would be wrong for this method and network."""
    if num_processes(trainer) > 1 and placement.mode == "local":
        check_apart(method)
    elif num_processes(trainer) > 1:
        mode_for(placement, method, data.example())
