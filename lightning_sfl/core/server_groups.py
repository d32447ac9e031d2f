"""Server steps that are shared by several uploads: who belongs to which step, and the mean gradient so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

Labels = tuple[tuple[Tensor, float], ...]


class ServerTurn(NamedTuple):
    """A step of one server half: which copy, on whose rows, how many, and with which labels.

    labels: what its predictions are compared with, and what share of a row each counts for: 1, or that in a mix. Empty
    where nobody is told. synthetic: rows that no client has, generated (among num_rows) or mixed (besides).
    """

    branch: int
    client_ids: tuple[int, ...]
    num_rows: int
    half: nn.Module
    labels: Labels = ()
    synthetic: int = 0


def ends_of(count: int, steps: int) -> list[int]:
    """Where `count` uploads in a row are cut into min(count, steps) runs whose lengths differ by one at most."""
    runs = min(count, steps)
    return [(run + 1) * count // runs for run in range(runs)]


@dataclass
class Kept:
    """The mean gradient of the uploads of a run so far, parameter by parameter, and whose they are."""

    turn: ServerTurn
    mean: list[Tensor | None]

    @torch.no_grad()
    def add(self, turn: ServerTurn, gradients: Sequence[Tensor | None]) -> None:
        """Some more rows: mean <- mean + (gradient - mean) * share of the new rows."""
        rows = self.turn.num_rows + turn.num_rows
        share = turn.num_rows / rows
        for place, (mean, found) in enumerate(zip(self.mean, gradients, strict=True)):
            if mean is not None or found is not None:
                like = found if mean is None else mean
                zero = torch.zeros_like(like)  # type: ignore[arg-type]
                self.mean[place] = torch.lerp(zero if mean is None else mean, zero if found is None else found, share)
        met = self.turn
        clients, labels = met.client_ids + turn.client_ids, met.labels + turn.labels
        self.turn = ServerTurn(turn.branch, clients, rows, turn.half, labels, met.synthetic + turn.synthetic)


class ServerGroups:
    """The uploads that each server half meets in a round, divided into runs that have a server step each.

    `missing`: steps that cannot be taken, because there are fewer uploads.

    Args:
        uploads: how many each branch will meet in this round; 0 is the one server half where there are no copies.
        steps: runs per branch.
    """

    def __init__(self, uploads: Mapping[int, int], steps: int) -> None:
        self.ends = {branch: ends_of(count, steps) for branch, count in uploads.items()}
        self.missing = sum(steps - len(ends) for ends in self.ends.values())
        self.met: Counter[int] = Counter()
        self.kept: dict[int, Kept] = {}

    def pieces(self, branch: int, count: int) -> list[int]:
        """How the next `count` uploads of a branch fall apart where runs end."""
        first, last = self.met[branch], self.met[branch] + count
        cuts = [first, *(end for end in self.ends[branch] if first < end < last), last]
        return [after - before for before, after in pairwise(cuts)]

    def meet(self, branch: int, count: int) -> bool:
        """So many more uploads have been served; whether a run ends with them."""
        self.met[branch] += count
        return self.met[branch] in self.ends[branch]

    def keep(self, turn: ServerTurn) -> None:
        """Take the gradients that now stand in `.grad` of a server half into the mean of its run."""
        gradients = [parameter.grad for parameter in turn.half.parameters()]
        if turn.branch in self.kept:
            self.kept[turn.branch].add(turn, gradients)
        else:
            self.kept[turn.branch] = Kept(turn, gradients)

    def close(self, branch: int) -> ServerTurn:
        """The run is over: write its mean gradient into `.grad` of the server half, and say whose it is."""
        kept = self.kept.pop(branch)
        for parameter, mean in zip(kept.turn.half.parameters(), kept.mean, strict=True):
            parameter.grad = mean
        return kept.turn
