"""Exchanging rows of the joint cut gradient between clients, or pulling them towards their mean, as USFL does.

A gradient is a tuple of parts, each (rows, ...), with the rows of all clients joined in client order. A client that
gets another's row backpropagates it through its own sample; that is meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.errors import require

Strategy = Literal["none", "random", "inplace", "average", "average_adaptive_alpha"]
Target = Literal["all", "activation_only"]
Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class GradientShuffle:
    """What happens to the rows of the joint cut gradient before each client gets its slice.

    Args:
        strategy: nothing (`none`); one permutation of all rows (`random`); an exchange after which each client has its
            share of every class (`inplace`); a blend of every row with the mean row (`average`), or one in which a row
            keeps the more of itself the nearer it points to the mean (`average_adaptive_alpha`).
        target: where several tensors cross the cut, `all` of them, or the first (`activation_only`).
        average_weight: with `average`, the mean's share, 0 to 1.
        adaptive_beta: with `average_adaptive_alpha`, a row keeps sigmoid(adaptive_beta * cosine with the mean).
    """

    strategy: Strategy = "none"
    target: Target = "all"
    average_weight: float = 0.5
    adaptive_beta: float = 2.0

    def checked(self) -> GradientShuffle:
        """The same, when its values are allowed; parsers would bury the error if the constructor raised it."""
        strategies, targets = get_args(Strategy), get_args(Target)
        require(self.strategy in strategies, "gradient_shuffle.strategy", self.strategy, f"one of {strategies}")
        require(self.target in targets, "gradient_shuffle.target", self.target, f"one of {targets}")
        fits = 0 <= self.average_weight <= 1
        require(fits, "gradient_shuffle.average_weight", self.average_weight, "a number from 0 to 1")
        fits = math.isfinite(self.adaptive_beta)
        require(fits, "gradient_shuffle.adaptive_beta", self.adaptive_beta, "a finite number")
        return self

    def __call__(
        self,
        slices: Sequence[Parts],
        labels: Sequence[Tensor],
        num_classes: int,
        rng: np.random.Generator,
        kept: KeptShares | None = None,
    ) -> list[Parts]:
        """What clients get instead of their slices; labels: each client's own, (rows,); kept: notes adaptive shares."""
        sizes = [len(parts[0]) for parts in slices]
        joint = tuple(torch.cat(column) for column in zip(*slices, strict=True))
        chosen = joint if self.target == "all" else joint[:1]
        if self.strategy == "random":
            chosen = reordered(chosen, rng.permutation(sum(sizes)))
        elif self.strategy == "inplace":
            chosen = reordered(chosen, exchanged(sizes, torch.cat(list(labels)).tolist(), num_classes, rng))
        elif self.strategy == "average":
            own = chosen[0].new_full((sum(sizes),), 1 - self.average_weight)
            chosen = tuple(towards_mean(part, own) for part in chosen)
        elif self.strategy == "average_adaptive_alpha":
            own = adaptive_shares(chosen[0], self.adaptive_beta)
            if kept is not None:
                kept.shares.append(own)
            chosen = tuple(towards_mean(part, own) for part in chosen)
        changed = (*chosen, *joint[len(chosen) :])
        return list(zip(*[part.split(sizes) for part in changed], strict=True))


class KeptShares:
    """The shares of themselves that rows kept in a round, where `average_adaptive_alpha` decides them row by row."""

    def __init__(self) -> None:
        self.shares: list[Tensor] = []

    def told(self) -> dict[str, float]:
        """Mean, smallest and largest of the round by tag, nothing where there was none; counted anew from here."""
        if not self.shares:
            return {}
        found, self.shares = torch.cat(self.shares).double(), []
        kinds = {"mean": found.mean(), "min": found.min(), "max": found.max()}
        return {f"shuffle/alpha_{kind}": float(value) for kind, value in kinds.items()}


def reordered(gradient: Parts, order: np.ndarray) -> Parts:
    """Row order[r] of every part in place r."""
    index = torch.from_numpy(order).to(gradient[0].device)
    return tuple(part[index] for part in gradient)


def towards_mean(part: Tensor, own: Tensor) -> Tensor:
    """own * row + (1 - own) * mean of all rows; own: (rows,)."""
    share = own.view(-1, *[1] * (part.dim() - 1))
    return share * part + (1 - share) * part.mean(dim=0, keepdim=True)


def adaptive_shares(part: Tensor, beta: float) -> Tensor:
    """sigmoid(beta * cosine between a row and the mean row), (rows,); norms below 1e-8 count as that."""
    rows = part.flatten(1)
    mean = rows.mean(dim=0)
    norms = rows.norm(dim=1).clamp(min=1e-8) * mean.norm().clamp(min=1e-8)
    return torch.sigmoid(beta * (rows @ mean) / norms)


def exchanged(sizes: Sequence[int], labels: Sequence[int], num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """A permutation of the rows after which each client has its size // num_classes rows of every label, if possible.

    A client keeps its first rows of each label up to that number and gives the others away. Label by label, clients in
    random order fill their freed places with rows of that label from other clients; what is left over goes to the
    places that are left over, at random. labels: of all rows, joined in client order.
    """
    places, given, kept = _given_away(sizes, labels, num_classes)
    source = np.arange(sum(sizes))
    for label in range(num_classes):
        for client in rng.permutation(len(sizes)):
            for _ in range(sizes[client] // num_classes - kept[client, label]):
                foreign = next((row for row in given[label] if row[0] != client), None)
                if foreign is None or not places[client]:
                    break
                given[label].remove(foreign)
                source[places[client].pop(0)] = foreign[1]
    rest = [row for rows in given for _, row in rows]
    source[[place for free in places for place in free]] = rng.permutation(rest) if rest else []
    return source


def _given_away(
    sizes: Sequence[int], labels: Sequence[int], num_classes: int
) -> tuple[list[list[int]], list[list[tuple[int, int]]], np.ndarray]:
    """Freed places of each client, (client, row) given away of each label, and rows kept (clients, classes)."""
    places: list[list[int]] = [[] for _ in sizes]
    given: list[list[tuple[int, int]]] = [[] for _ in range(num_classes)]
    kept = np.zeros((len(sizes), num_classes), dtype=np.int64)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    for row, (client, label) in enumerate(zip(owners.tolist(), labels, strict=True)):
        if kept[client, label] < sizes[client] // num_classes:
            kept[client, label] += 1
        else:
            places[client].append(row)
            given[label].append((client, row))
    return places, given, kept
