"""The coordinator's side of a step: which directions, and one message out of all clients' scalars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.holograd.basis import LEAST_OUTSIDE, Basis, BasisChoice
from lightning_sfl.core.holograd.directions import DirectionKind, Directions
from lightning_sfl.core.holograd.replay import Named, sets_of
from lightning_sfl.core.holograd.robust import Robust
from lightning_sfl.core.holograd.synthesis import Message, Scale, factor

Topology = Literal["shared", "partitioned"]


@dataclass(frozen=True)
class Recipe:
    """What a method of this kind consists of; what makes no sense together is refused."""

    num_scalars: int
    kind: DirectionKind
    scale: Scale
    topology: Topology
    robust: Robust
    basis: BasisChoice

    def __post_init__(self) -> None:
        require(self.num_scalars >= 1, "num_scalars", self.num_scalars, "an integer >= 1")
        for key, value, known in (
            ("directions", self.kind, ("random", "orthogonal")),
            ("scale", self.scale, ("mmse", "unbiased", "norm")),
            ("topology", self.topology, ("shared", "partitioned")),
        ):
            require(value in known, key, value, f"one of {', '.join(known)}")
        alone = self.topology == "shared" or self.robust.rule == "mean"
        require(
            alone, "robust.rule", self.robust.rule, "mean, where topology=partitioned gives clients no common direction"
        )
        least = self.basis.most_rows + LEAST_OUTSIDE if self.basis.most_rows else 1
        enough = f"an integer >= {least}: a basis of {self.basis.most_rows} needs {LEAST_OUTSIDE} directions outside it"
        require(self.num_scalars >= least, "num_scalars", self.num_scalars, enough)

    def check_size(self, size: int) -> None:
        """Refuse more orthogonal directions, or a larger basis, than a network of `size` parameters has room for."""
        fits = self.kind == "random" or self.num_scalars <= size
        require(fits, "num_scalars", self.num_scalars, f"at most the network's {size} parameters, being orthogonal")
        require(self.basis.most_rows < size, "basis.rank", self.basis.rank, f"below the network's {size} parameters")


class Coordinator:
    """Holds parameters (live) and basis; `open` a step, hand out `sets`, `conclude` it with what came back."""

    def __init__(self, recipe: Recipe, base: bytes, parameters: Named, basis: Basis) -> None:
        self.recipe, self.base, self.named, self.basis = recipe, base, list(parameters), basis
        self.sets: list[Directions] = []

    def open(self, step: int, batches: Sequence[bytes]) -> None:
        """Draw up the directions committed to the parameters as they are now: one set for each digest of a batch."""
        self.step, self.batches = step, tuple(batches)
        recipe = self.recipe
        self.sets = sets_of(self.base, self.named, self.basis, step, batches, recipe.num_scalars, recipe.kind)

    def conclude(self, scalars: Tensor, weights: Sequence[float], arrived: Sequence[int]) -> Message:
        """The message of this step from scalars (clients, rows + count), of which those `arrived` count.

        weights: of all clients, of sum 1; they are scaled up to those that count.
        """
        rows = len(self.basis.rows)
        counted = scalars[list(arrived)]
        shares = torch.tensor([weights[i] for i in arrived], dtype=torch.float64)
        shares /= shares.sum()
        count, size = self.recipe.num_scalars - rows, self.basis.rows.shape[1] - rows
        kind, scale = self.recipe.kind, self.recipe.scale
        if self.recipe.topology == "shared":
            joint = self.recipe.robust.aggregate(counted, shares)
            return Message(self.step, self.batches, joint[:rows], (factor(count, size, kind, scale) * joint[rows:],))
        several = factor(count, size, kind, scale, clients=1 / float(shares.square().sum()))
        coefficients = several * shares.to(counted)[:, None] * counted[:, rows:]
        batches = tuple(self.batches[i] for i in arrived)
        return Message(self.step, batches, shares.to(counted) @ counted[:, :rows], tuple(coefficients))

    def sets_arrived(self, arrived: Sequence[int]) -> list[Directions]:
        """The sets that the coefficients of the message belong to."""
        return self.sets if self.recipe.topology == "shared" else [self.sets[i] for i in arrived]
