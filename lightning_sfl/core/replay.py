"""Replay requests: which classes a branch lacks, and which rows of other clients make up for it (MultiSFL)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_sfl.core.errors import require
from lightning_sfl.core.population import Population
from lightning_sfl.core.proportion_schedule import RULES, ProportionRule

Found = list[tuple[int, np.ndarray]]


@dataclass(frozen=True)
class Replay:
    """How much MultiSFL replays, of what, from whom and when.

    Args:
        proportion: rows replayed in the first round, as a part of the client's rows.
        least: lower bound of the proportion, > 0, for it could never recover from zero.
        most: upper bound of the proportion.
        rule: how the proportion follows the server's gradient norm from round to round.
        largest_change: bound of its relative change in a round; for `one_plus_delta` only.
        base: what the proportion is of: the client's rows, or its batch.
        minimum: rows asked for at least.
        decay: weight of a branch's labels one visit ago against those of now.
        labels: the labels a branch counts as met: all of its client's, or those of the first batch.
        normalised: count label shares rather than numbers of labels.
        assistants: clients asked at most for one branch in a round; 0 for no replay, null for as many as there are.
        pool: who may be asked: clients that sit out the round, or all but the branch's own.
        sampling: ask them with replacement, or each at most once.
        rows_per_assistant: rows that one assistant gives at most.
        placement: replay all rows in the first step, or spread them over each pass with features of its start.
    """

    proportion: float = 0.01
    least: float = 0.01
    most: float = 0.5
    rule: ProportionRule = "abs_ratio"
    largest_change: float = 0.2
    base: Literal["client", "batch"] = "client"
    minimum: int = 0
    decay: float = 0.5
    labels: Literal["client", "first_batch"] = "client"
    normalised: bool = True
    assistants: int | None = 20
    pool: Literal["inactive", "all_but_own"] = "inactive"
    sampling: Literal["with_replacement", "pass"] = "with_replacement"
    rows_per_assistant: int = 256
    placement: Literal["first_step", "spread"] = "first_step"

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            value = getattr(self, key)
            require(value in allowed, f"replay.{key}", value, f"one of {allowed}")
        require(0 < self.least <= 1, "replay.least", self.least, "a number in (0, 1]")
        require(self.least <= self.most < float("inf"), "replay.most", self.most, f"a number >= least={self.least}")
        within = self.least <= self.proportion <= self.most
        require(within, "replay.proportion", self.proportion, f"a number from {self.least} to {self.most}")
        require(0 < self.largest_change < 1, "replay.largest_change", self.largest_change, "a number in (0, 1)")
        require(0 <= self.decay <= 1, "replay.decay", self.decay, "a number in [0, 1]")
        require(self.minimum >= 0, "replay.minimum", self.minimum, "an integer >= 0")
        asked = self.assistants is None or self.assistants >= 0
        require(asked, "replay.assistants", self.assistants, "an integer >= 0, or null")
        require(self.rows_per_assistant >= 1, "replay.rows_per_assistant", self.rows_per_assistant, "an integer >= 1")


CHOICES: dict[str, tuple[str, ...]] = {
    "rule": RULES,
    "base": ("client", "batch"),
    "labels": ("client", "first_batch"),
    "pool": ("inactive", "all_but_own"),
    "sampling": ("with_replacement", "pass"),
    "placement": ("first_step", "spread"),
}
BY_DEFAULT = Replay()


def budget(base: int, proportion: float, minimum: int) -> int:
    """Rows to ask for: the proportion of `base`, halves rounded to even, and at least the minimum."""
    return max(round(base * proportion), minimum)


def request(deficit: np.ndarray, total: int) -> np.ndarray:
    """`total` rows dealt to the classes in proportion to their deficits, (classes,) integers; none without deficits.

    Halves are rounded to even; what is then missing or too much goes round the classes by falling deficit, ties by id.
    """
    wanted = np.zeros(len(deficit), dtype=np.int64)
    if total <= 0 or deficit.sum() <= 0:
        return wanted
    wanted = np.rint(total * deficit / deficit.sum()).astype(np.int64)
    lacking = [int(c) for c in np.argsort(-deficit, kind="stable") if deficit[c] > 0]
    while (missing := total - int(wanted.sum())) != 0:
        for label in lacking[: abs(missing)]:
            wanted[label] = max(0, wanted[label] + np.sign(missing))
    return wanted


def order_of_asking(replay: Replay, pool: Sequence[int], draws: np.random.Generator) -> Iterable[int]:
    """The clients of the pool to ask, one after another."""
    count = len(pool) if replay.assistants is None else replay.assistants
    if not pool:
        return []
    if replay.sampling == "pass":
        return [int(client) for client in draws.permutation(np.asarray(pool))[:count]]
    return (int(draws.choice(np.asarray(pool))) for _ in range(count))


def collect(
    wanted: np.ndarray, asked: Iterable[int], population: Population, limit: int, draws: np.random.Generator
) -> Found:
    """Ask clients until every class is there, or nobody is left: (client, its rows) of each that gave some.

    A client gives what it has of what is still wanted, by class, drawn without replacement, and at most `limit` rows.
    """
    remaining = wanted.copy()
    found: Found = []
    for client in asked if remaining.any() else ():
        rows = given(remaining, population.rows[client], population, limit, draws)
        if len(rows):
            remaining -= np.bincount(population.labels_of(rows), minlength=len(remaining))
            found.append((client, rows))
        if not remaining.any():
            break
    return found


def given(
    remaining: np.ndarray, own: np.ndarray, population: Population, limit: int, draws: np.random.Generator
) -> np.ndarray:
    """What one client with these rows gives."""
    labels = population.labels_of(own)
    rows = [np.zeros(0, dtype=np.int64)]
    for label in np.flatnonzero(remaining):
        candidates = own[labels == label]
        count = min(int(remaining[label]), len(candidates), limit)
        rows.append(draws.choice(candidates, size=count, replace=False))
        limit -= count
    return np.concatenate(rows)


def spread(found: Found, steps: int) -> list[Found]:
    """The rows dealt to so many steps in order, equally many to each as far as they go."""
    total = sum(len(rows) for _, rows in found)
    share = -(-total // steps)
    dealt: list[Found] = [[] for _ in range(steps)]
    place = 0
    for client, rows in found:
        for part in np.split(rows, range(share - place % share, len(rows), share)):
            dealt[place // share].append((client, part))
            place += len(part)
    return dealt
