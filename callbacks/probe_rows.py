"""The rows that probes are taken on: held-out ones, or the test set, the same in every round."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.population import Population
from lightning_sfl.core.randomness import stream

ProbeSource = Literal["val", "test"]


def check_source(data: Any, source: ProbeSource, key: str) -> None:
    """Refuse to probe with held-out rows where the data show none; `key`: of the watcher."""
    held_out = source == "test" or data.eval_set == "val"
    require(held_out, f"{key}.source", source, "test where data.eval_set is test: no rows are held out there")


def probe_of(module: Any, source: ProbeSource, max_rows: int | None) -> Population:
    """One client with at most so many rows, which follow from the seed."""
    x, y = (part.to(module.device) for part in rows_of(module.data, source))
    order = stream(module.seed, "probe").permutation(len(y))[:max_rows]
    return Population(x, y, (order,))


def rows_of(data: Any, source: ProbeSource) -> tuple[Tensor, Tensor]:
    """Inputs and labels of the whole split, in its order."""
    batches = list(data.test_dataloader() if source == "test" else data.val_dataloader())
    return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
