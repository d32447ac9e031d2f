"""Fabric and the Trainer train the same, bit for bit, in one process and in several (invariant 16)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from lightning_sfl.methods import HoloGrad
from tests.holograd import fabric_loop
from tests.placement.processes import LIMIT_S, environment
from tests.tiny import differing, fit, network, rows, sgd, whole


def by_the_trainer() -> dict[str, Any]:
    method = HoloGrad(
        network(), "relu1", num_scalars=fabric_loop.NUM_SCALARS, scale="mmse", basis=fabric_loop.BASIS,
        robust=fabric_loop.ROBUST, server_optimizer=sgd(0.1, 0.9), persist_server_optimizer=True,
    )  # fmt: skip
    return whole(fit(method, rows(fabric_loop.SIZES), fabric_loop.ROUNDS))


def test_a_loop_of_fabric_trains_what_the_trainer_does() -> None:
    alone = fabric_loop.train(Fabric(accelerator="cpu", devices=1))
    assert differing(alone, by_the_trainer()) == []
    assert len(differing(alone, dict(network().state_dict()))) == len(alone)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_in_several_processes_only_scalars_travel(processes: int, tmp_path: Path) -> None:
    command = [sys.executable, fabric_loop.__file__, str(processes), str(tmp_path / "net")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    for rank in range(processes):
        assert differing(torch.load(f"{tmp_path}/net.{rank}.pt", weights_only=True), by_the_trainer()) == []
