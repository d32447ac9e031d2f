"""What leaks from clients at one state of a method: at each cut, and from what one of its clients hands in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sfl.core.cut import parts
from lightning_sfl.core.errors import require
from lightning_sfl.core.evaluation import evaluated
from lightning_sfl.core.gradients import untouched
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.split import CutRow, cuts, split
from lightning_sfl.leakage_attack import Attack
from lightning_sfl.measures.leakage import distance_correlation
from lightning_sfl.methods.base import SplitMethod


def check_leaks(method: SplitMethod, data: Any) -> None:
    """Refuse what there is nothing to ask about."""
    name = type(method).__name__
    x = data.population.x
    floating = x.is_floating_point() or x.dtype == torch.uint8
    why = "one whose inputs are numbers that can be moved a little, such as pixels"
    require(floating, "data.source", type(data.source).__name__, why)
    own = method.one_process or method.why_not_by_rows
    require(not own, "model", name, f"a method whose clients send updates or smashed data: in {name} {own}")


def whole_network(method: SplitMethod) -> nn.Module:
    """The backbone with the weights that the halves have."""
    network = copy.deepcopy(method.backbone[0])
    network.load_state_dict({**method.client_half.state_dict(), **method.server_half.state_dict()}, strict=False)
    return network


def leaks_at_cuts(method: SplitMethod, data: Any, samples: int) -> list[dict[str, Any]]:
    """For each valid cut what crosses it, and how much smashed data go with their inputs; with the run's noise, too."""
    population = data.population
    rows = np.concatenate(population.rows)
    drawn = stream(method.seed, "leaks_samples").choice(rows, min(samples, len(rows)), replace=False)
    x, _ = population.take(drawn)
    network = whole_network(method)
    return [
        one_cut(method, row, split(network, row.name, data.example()).client_half, x) for row in cuts_of(network, data)
    ]


def cuts_of(network: nn.Module, data: Any) -> Sequence[CutRow]:
    """The valid cuts."""
    return cuts(network, data.example()).valid


def one_cut(method: SplitMethod, row: CutRow, client_half: nn.Module, x: Tensor) -> dict[str, Any]:
    """Figures of one cut."""
    leaving = [*parts(evaluated(client_half, x))]
    found: dict[str, Any] = {
        "cut_layer": row.name,
        "bytes_per_sample": round(row.kib_per_sample * 1024),
        "distance_correlation": distance_correlation(x, rows_flat(leaving)),
    }
    if method.veil is not None:
        method.veil.start_round(0)
        found["with_noise"] = distance_correlation(x, rows_flat(method.veil(0, 0, 0, leaving)))
    return found


def rows_flat(pieces: Sequence[Tensor]) -> Tensor:
    """All parts side by side, (rows, numbers)."""
    return torch.cat([piece.flatten(1) for piece in pieces], dim=1)


def leaks_to_attack(
    method: SplitMethod, data: Any, rows: int, steps: int, restarts: int, bar: Callable[[int], Any]
) -> list[dict[str, Any]]:
    """Figures of the attack on everything that is seen; `bar(total)` gives what shows its progress."""
    attack = Attack(method, data.population, rows)
    with untouched(attack.halves, "batch", data.population.x.device):
        seen = attack.seen()
        with bar(len(seen) * steps * restarts) as progress:
            return [attack.figures(each, steps, restarts, progress.update) for each in seen]
