"""Runs of GAS on a clock, three clients at a time unless said otherwise."""

from __future__ import annotations

from typing import Any

import torch

from lightning_sfl.core.activation_buffer import Generation
from lightning_sfl.core.clock import Cell
from lightning_sfl.methods import GAS
from tests.tiny import Recorder, build, fit, rows

EQUAL = Cell(compute_flops=(1e9, 1e9), distance_km=(0.5, 0.5))
SPREAD = Cell(compute_flops=(1e6, 1e7))
OFF = Generation(every=0)
WHOLE: dict[str, Any] = {"generation": Generation(), "prior_exponent": 1.0}
SYNCHRONOUS: dict[str, Any] = {"participation": "per_round", "prior_exponent": 0.0, "generation": OFF}
SIZES = (8, 8, 8, 8, 8)


def run(rounds: int = 3, sizes: tuple[int, ...] = SIZES, net: Any = None, **options: Any) -> tuple[Any, Recorder]:
    recorder = Recorder()
    method = build(GAS, net, **{**WHOLE, "participants": 3, "batch_size": 4, "cell": SPREAD, **options})
    fit(method, rows(sizes, dtype=next(net.parameters()).dtype if net else torch.float32), rounds, [recorder])
    return method, recorder
