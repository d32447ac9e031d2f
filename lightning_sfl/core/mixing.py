"""Mixes of smashed data and of cut gradients across clients: SmashMix and GradMix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.cut import Smashed, like, parts
from lightning_sfl.core.errors import require

Distribution = Literal["uniform", "beta"]
Unequal = Literal["skip", "truncate"]
Reduce = Literal["sum", "mean"]
Members = Literal["each_step", "each_round"]
Pair = tuple[int, int]


@dataclass(frozen=True)
class SmashMix:
    """Mixed smashed data on which the server half is trained besides.

    Args:
        ratio: how many others each client is mixed with, as a share of the clients in the sweep; 0 switches it off.
        distribution: of the share of a client in its mix, one for each pair: `uniform`, or symmetric `beta`.
        alpha: both parameters of `beta`.
        loss_weight: weight of the mixed losses beside the joint loss.
        normalize: divide the mixed losses by their number instead of adding them up.
        unequal: batches of unequal size are not mixed (`skip`), or as far as both go (`truncate`).
        update_bn: let mixed data move the server's batch-norm statistics.
    """

    ratio: float = 0.2
    distribution: Distribution = "uniform"
    alpha: float = 1.0
    loss_weight: float = 1.0
    normalize: bool = False
    unequal: Unequal = "skip"
    update_bn: bool = True

    def checked(self) -> SmashMix:
        """The same, when its values are allowed."""
        require(0 <= self.ratio < math.inf, "smashmix.ratio", self.ratio, "a finite number >= 0")
        known = get_args(Distribution)
        require(self.distribution in known, "smashmix.distribution", self.distribution, f"one of {known}")
        require(0 < self.alpha < math.inf, "smashmix.alpha", self.alpha, "a finite number > 0")
        require(0 <= self.loss_weight < math.inf, "smashmix.loss_weight", self.loss_weight, "a finite number >= 0")
        require(self.unequal in get_args(Unequal), "smashmix.unequal", self.unequal, f"one of {get_args(Unequal)}")
        return self

    def draw(self, sizes: Sequence[int], rng: np.random.Generator) -> list[tuple[int, int, float]]:
        """(one, other, share of one) for all pairs that can be mixed, given the clients' batch sizes."""
        pairs = smashmix_pairs(len(sizes), self.ratio, rng)
        uniform = self.distribution == "uniform"
        shares = rng.random(len(pairs)) if uniform else rng.beta(self.alpha, self.alpha, len(pairs))
        drawn = [(one, other, float(share)) for (one, other), share in zip(pairs, shares, strict=True)]
        return [pair for pair in drawn if self.unequal == "truncate" or sizes[pair[0]] == sizes[pair[1]]]

    def weight(self, num_pairs: int) -> float:
        """Weight of each mixed loss."""
        return self.loss_weight / num_pairs if self.normalize else self.loss_weight


@dataclass(frozen=True)
class GradMix:
    """One common cut gradient for the members of a drawn set.

    Args:
        phi: size of the set as a share of the clients in the sweep, rounded down; 0 switches it off, and a single
            member changes nothing, so that 0.5 does nothing with three clients.
        reduce: the common gradient is the `sum` of the members' slices, each of scale 1/S, or their `mean`.
        members: draw the set anew in `each_step`, or once in `each_round`.
    """

    phi: float = 0.5
    reduce: Reduce = "sum"
    members: Members = "each_step"

    def checked(self) -> GradMix:
        """The same, when its values are allowed."""
        require(0 <= self.phi <= 1, "gradmix.phi", self.phi, "a number from 0 to 1")
        require(self.reduce in get_args(Reduce), "gradmix.reduce", self.reduce, f"one of {get_args(Reduce)}")
        require(self.members in get_args(Members), "gradmix.members", self.members, f"one of {get_args(Members)}")
        return self


def share_of(count: int, ratio: float) -> int:
    """floor(count * ratio), with a grain of tolerance: 0.29 * 100 is 29."""
    return math.floor(count * ratio + 1e-9)


def smashmix_pairs(num_clients: int, ratio: float, rng: np.random.Generator) -> list[Pair]:
    """Every client with floor(num_clients * ratio) distinct others, at most all of them; ordered pairs."""
    partners = min(share_of(num_clients, ratio), num_clients - 1)
    pairs = []
    for one in range(num_clients if partners > 0 else 0):
        others = np.delete(np.arange(num_clients), one)
        pairs += [(one, int(other)) for other in rng.choice(others, size=partners, replace=False)]
    return pairs


def mixed(one: Smashed, other: Smashed, share: float) -> Smashed:
    """share * one + (1 - share) * other, row by row, as many rows as both have; no gradient flows back."""
    rows = min(len(parts(one)[0]), len(parts(other)[0]))
    columns = zip(parts(one), parts(other), strict=True)
    return like(one, [share * a.detach()[:rows] + (1 - share) * b.detach()[:rows] for a, b in columns])


def gradmix_members(num_clients: int, phi: float, rng: np.random.Generator) -> list[int]:
    """floor(num_clients * phi) of the clients, in the order drawn."""
    return [int(client) for client in rng.permutation(num_clients)[: share_of(num_clients, phi)]]


def gradmix(slices: Sequence[tuple[Tensor, ...]], members: Sequence[int], reduce: Reduce) -> list[tuple[Tensor, ...]]:
    """Cut gradients in which all members have the same one: the sum, or mean, of the members', row k with row k.

    Members whose batch has another size than the first member's keep their own, as does whoever is not a member. A
    single member changes nothing.
    """
    matched = [member for member in members if len(slices[member][0]) == len(slices[members[0]][0])]
    answers = list(slices)
    if matched:
        columns = zip(*[slices[member] for member in matched], strict=True)
        common = tuple(torch.stack(column).sum(dim=0) for column in columns)
        if reduce == "mean":
            common = tuple(part / len(matched) for part in common)
        for member in matched:
            answers[member] = common
    return answers
