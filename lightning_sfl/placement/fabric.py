"""Fabric in processes that run already: devices and sums over processes, beside the Trainer, which has the loop."""

from __future__ import annotations

import os
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import nn


class RunningProcesses(DDPStrategy):
    """The group that the Trainer's strategy has joined; modules stay as they are."""

    def setup_module(self, module: nn.Module) -> Any:
        """Without DDP's wrapper."""
        return module


def joined(strategy: Any) -> Fabric:
    """Fabric in the group of the Trainer's strategy: same processes, same devices."""
    told = os.environ.get("LT_CLI_USED") == "1"  # then Fabric reads what `fabric run` was told
    fabric = Fabric(
        accelerator="auto" if told else strategy.root_device.type,
        devices="auto" if told else strategy.num_processes,
        num_nodes=1 if told else strategy.num_nodes,
        strategy=RunningProcesses(cluster_environment=strategy.cluster_environment),
    )
    if not told:
        fabric.launch()
    return fabric
