"""Starts real processes and compares what came of them with one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORKER = Path(__file__).with_name("worker.py")
LIMIT_S = 400


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """This one's, without what a launcher may have left in it."""
    left = ("MASTER_", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "TORCHELASTIC_", "LT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left)}
    return kept | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def trained(processes: int, cases: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """What each process has of each case."""
    results = folder / f"of{processes}"
    command = [sys.executable, str(WORKER), str(processes), str(results), *cases]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{results}.{rank}.pt", weights_only=True) for rank in range(processes)]


def differences(one: Any, other: Any, tolerance: float = 0.0, place: str = "") -> list[str]:
    """Where two outcomes differ: tensors and floats by more than the tolerance, all else at all."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        far = (one.double() - other.double()).abs().max().item() if one.shape == other.shape and one.numel() else 0.0
        return [] if one.shape == other.shape and far <= tolerance else [f"{place}: {far:g}"]
    if isinstance(one, dict) and isinstance(other, dict):
        missing = [f"{place}/{key}: only in one" for key in one.keys() ^ other.keys()]
        both = [key for key in one if key in other]
        return missing + [d for key in both for d in differences(one[key], other[key], tolerance, f"{place}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return [f"{place}: {len(one)} and {len(other)} entries"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, tolerance, f"{place}[{i}]")]
    if isinstance(one, float) and isinstance(other, float):
        return [] if abs(one - other) <= tolerance else [f"{place}: {one} and {other}"]
    return [] if one == other else [f"{place}: {one} and {other}"]
