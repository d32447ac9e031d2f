"""Updates in numbers, and what an aggregation rule makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lightning_sfl.core.aggregators import Aggregator
from lightning_sfl.core.state import State


def states(*rows: Any) -> list[State]:
    return [{"w": torch.tensor(row, dtype=torch.float64)} for row in rows]


def merged(rule: Aggregator, *updates: Any, weights: Any = None, anchor: Any = None) -> list[float]:
    """The merged update, the clients having started from the anchor."""
    origin = torch.zeros(len(updates[0]), dtype=torch.float64) if anchor is None else torch.tensor(anchor)
    handed_in = [{"w": origin + state["w"]} for state in states(*updates)]
    result = rule.merge(handed_in, {"w": origin}, weights or [1.0] * len(updates))
    return (result["w"] - origin).tolist()


def drawn(seed: int, count: int = 7, size: int = 20) -> list[list[float]]:
    found: list[list[float]] = np.random.default_rng(seed).normal(size=(count, size)).tolist()
    return found
