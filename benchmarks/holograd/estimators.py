"""Ways to a gradient estimate from scalars, with one face: `step(gradient, t) -> estimate`, and training with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.holograd.legacy import LegacyMomentum, LegacySubspace
from benchmarks.holograd.tasks import Problem
from lightning_sfl.core.holograd.basis import Basis, BasisChoice, captured_energy
from lightning_sfl.core.holograd.commitment import Commitment, base_of, basis_seeds
from lightning_sfl.core.holograd.directions import DirectionKind, Directions, draw
from lightning_sfl.core.holograd.projection import project_gradients
from lightning_sfl.core.holograd.synthesis import Scale, factor, synthesize

EMPTY = bytes(32)


class Estimator(Protocol):
    """What all of them do."""

    def step(self, gradient: Tensor, t: int) -> Tensor:
        """The estimate of this gradient in step t."""


def seeds_of(seed: int, purpose: str, t: int, count: int) -> list[bytes]:
    """Seeds of one step. They are not bound to parameters, so that another machine's rounding draws the same."""
    return Commitment(base_of(seed, purpose), EMPTY, EMPTY).seeds(t, count)


class SharedDirections:
    """Hands out the same directions of a step to all runs that differ in their learning rate only."""

    def __init__(self, seed: int, purpose: str, size: int, kind: DirectionKind = "random") -> None:
        self.seed, self.purpose, self.kind, self.nothing = seed, purpose, kind, torch.zeros(0, size)
        self.now: tuple[int, int] = (-1, 0)

    def at(self, t: int, count: int) -> Directions:
        """Directions of step t."""
        if self.now != (t, count):
            self.now = (t, count)
            self.set = Directions(seeds_of(self.seed, self.purpose, t, count), self.nothing, self.kind)
        return self.set


class RandomDirections:
    """K scalars along random directions."""

    def __init__(self, directions: SharedDirections, count: int, scale: Scale = "mmse") -> None:
        self.directions, self.count, self.scale = directions, count, scale

    def step(self, gradient: Tensor, t: int) -> Tensor:
        """The estimate."""
        found = self.directions.at(t, self.count)
        scale = factor(self.count, len(gradient), found.kind, self.scale)
        return scale * found.combine(found.project(gradient[None])[0])


class WithBasis:
    """Coordinates in a learned basis and random directions outside it, `count` scalars together.

    oracle: the basis learns from true gradients.
    """

    def __init__(
        self, seed: int, purpose: str, choice: BasisChoice, count: int, scale: Scale, like: Tensor, oracle: bool = False
    ) -> None:
        self.seed, self.purpose, self.count, self.scale, self.oracle = seed, purpose, count, scale, oracle
        self.basis = Basis(choice, basis_seeds(base_of(seed, purpose), choice.rank), like)

    def step(self, gradient: Tensor, t: int) -> Tensor:
        """The estimate, from which the basis has learned."""
        rows = self.basis.rows
        directions = Directions(seeds_of(self.seed, self.purpose, t, self.count - len(rows)), rows)
        scalars = project_gradients(gradient[None], directions)[0]
        scale = factor(len(directions), len(gradient) - len(rows), "random", self.scale)
        estimate = synthesize(scalars[: len(rows)], [scale * scalars[len(rows) :]], [directions])
        self.basis.learn(gradient if self.oracle else estimate)
        return estimate


class PaperMomentum:
    """The paper's momentum: true gradients for `warm_up` steps, then one scalar, and nothing outside the line."""

    def __init__(self, like: Tensor, warm_up: int, scaled: bool, beta: float = 0.9) -> None:
        self.legacy, self.warm_up = LegacyMomentum(torch.zeros_like(like), beta, scaled), warm_up
        self.first: Tensor | None = None

    def step(self, gradient: Tensor, t: int) -> Tensor:
        """The gradient itself at first, then a multiple of the momentum."""
        if t < self.warm_up:
            self.legacy.momentum = self.legacy.beta * self.legacy.momentum + (1 - self.legacy.beta) * gradient
            self.first = self.legacy.momentum
            return gradient
        return self.legacy.step(gradient)

    @property
    def turned(self) -> float:
        """Cosine between the momentum now and at the end of the warm-up."""
        assert self.first is not None
        return cosine(self.legacy.momentum, self.first)


class OracleMomentum:
    """One scalar along the momentum of true gradients, which nobody in the protocol has."""

    def __init__(self, like: Tensor, beta: float = 0.9) -> None:
        self.momentum, self.beta = torch.zeros_like(like), beta

    def step(self, gradient: Tensor, t: int) -> Tensor:
        """The projection on the momentum before this step; the gradient itself at the very first."""
        before = self.momentum
        self.momentum = self.beta * before + (1 - self.beta) * gradient
        return gradient if t == 0 else float(before @ gradient) / float(before @ before) * before


class PaperSubspace:
    """ADC as the paper has it: directions and learning signal inside the subspace."""

    def __init__(self, seed: int, purpose: str, rank: int, count: int, like: Tensor, alpha: float = 1e-3) -> None:
        start = Basis(BasisChoice("subspace", rank=rank), basis_seeds(base_of(seed, purpose), rank), like).rows
        self.seed, self.purpose, self.count, self.rank = seed, purpose, count, rank
        self.legacy = LegacySubspace(start, alpha)

    def step(self, gradient: Tensor, t: int) -> Tensor:
        """The estimate."""
        drawn = [torch.from_numpy(draw(seed, self.rank)) for seed in seeds_of(self.seed, self.purpose, t, self.count)]
        return self.legacy.step(gradient, torch.stack(drawn).to(gradient))


class Exact:
    """The gradient itself."""

    def step(self, gradient: Tensor, t: int) -> Tensor:
        """The same."""
        return gradient


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine of two vectors; 0 where one is zero."""
    norms = float(one.norm() * other.norm())
    return float(one @ other) / norms if norms else 0.0


def basis_energy(rows: Tensor, gradient: Tensor) -> float:
    """Share of the gradient's squared norm in the span of these rows; 0 without rows or gradient."""
    return captured_energy(rows, gradient) if len(rows) and bool(gradient.any()) else 0.0


Watch = Callable[[Estimator, Tensor, Tensor, int], None]


def train(
    problem: Problem,
    estimators: Sequence[Estimator],
    rates: Sequence[float],
    steps: int,
    batch_size: int,
    watch: Watch | None = None,
    looks: int = 10,
) -> list[list[float]]:
    """Training loss of each (estimator, rate) at `looks` times; the runs go side by side on the same batches.

    A run whose loss is not finite, or above twice that of the start, is stopped: its later losses are infinite.
    """
    thetas: list[Tensor | None] = [problem.start.clone() for _ in estimators]
    first = problem.loss(problem.start)
    curves: list[list[float]] = [[first] for _ in estimators]
    for t in range(steps):
        rows = problem.batch("batch", t, batch_size)
        for theta, estimator, rate in zip(thetas, estimators, rates, strict=True):
            if theta is not None:
                gradient = problem.gradient(theta, rows)
                estimate = estimator.step(gradient, t)
                theta.sub_(estimate, alpha=rate)
                if watch is not None:
                    watch(estimator, gradient, estimate, t)
        if (t + 1) % max(1, steps // looks) == 0:
            for i, theta in enumerate(thetas):
                loss = float("inf") if theta is None else problem.loss(theta)
                if not loss < 2 * first:
                    thetas[i], loss = None, float("inf")
                curves[i].append(loss)
    return curves
