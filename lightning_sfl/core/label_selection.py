"""USFL's choice of participants: together they hold every class, in numbers as even as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.balancing import balance_counts, label_counts
from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.core.memory import Memory
from lightning_sfl.core.population import Population
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.selection import Selector
from lightning_sfl.core.usage import bins_of, freshness

Usage = Literal["ignored", "unused", "fresh"]
SMALL_BATCH = 64


class LabelAware(Selector, Memory):
    """Grows a set from a random first client until it has every class often enough, and starts anew if it cannot.

    The next client is the one with the best score: alpha times how large the rarest class becomes, plus (1 - alpha)
    times how seldom the client was chosen in the last (clients // participants) rounds, both scaled to 0..1 over the
    candidates. A set is accepted when it has `participants` clients or more, and of every class at least as many rows
    as its share of one joint batch. Clients with fewer rows than there are classes are never chosen; where a joint
    batch has more than 64 rows, neither are those whose share of it would have fewer rows than there are classes.

    Args:
        alpha: weight of the rarest class against seldom choice, 0 to 1.
        usage: `ignored`; `unused`, the rarest class counts only rows the candidate never trained on; or `fresh`, of the
            `top_n` candidates that leave fewest classes missing and the rarest largest, take the one whose rows, after
            trimming, were used least.
        top_n: candidates that `fresh` compares.
        freshness_decay: what a row loses in worth with every use, as a factor, 0 to 1.
        max_retry: sets to try before giving up.
        max_participants: most clients of a round, each of which costs memory for a client half; twice `participants`
            by default.
    """

    depends_on_past = True
    picks: Tensor
    uses: Tensor

    def __init__(
        self,
        alpha: float = 0.5,
        usage: Usage = "ignored",
        top_n: int = 3,
        freshness_decay: float = 0.5,
        max_retry: int = 1000,
        max_participants: int | None = None,
    ) -> None:
        super().__init__(picks=torch.zeros(0, 2, dtype=torch.int64), uses=torch.zeros(0, dtype=torch.int64))
        require(0 <= alpha <= 1, "selection.alpha", alpha, "a number from 0 to 1")
        require(usage in get_args(Usage), "selection.usage", usage, f"one of {get_args(Usage)}")
        require(top_n >= 1, "selection.top_n", top_n, "an integer >= 1")
        require(0 <= freshness_decay <= 1, "selection.freshness_decay", freshness_decay, "a number from 0 to 1")
        require(max_retry >= 1, "selection.max_retry", max_retry, "an integer >= 1")
        enough = max_participants is None or max_participants >= 1
        require(enough, "selection.max_participants", max_participants, "an integer >= 1, or null")
        self.alpha, self.usage, self.top_n, self.freshness_decay = alpha, usage, top_n, freshness_decay
        self.max_retry, self.max_participants = max_retry, max_participants

    def prepare(self, population: Population, num_classes: int, participants: int, step_rows: int | None) -> None:
        self.rows, self.labels = population.rows, population.y.cpu().numpy()
        self.counts = label_counts(self.labels, self.rows, num_classes)
        self.sizes = self.counts.sum(axis=1)
        self.num_classes, self.joint_rows = num_classes, step_rows or 0
        self.window = population.num_clients // participants
        self.uses, self.picks = self.uses.new_zeros(len(self.labels)), self.picks.new_zeros(0, 2)

    def most(self, participants: int) -> int:
        return max(participants, self.max_participants or 2 * participants)

    def observe(self, plan: Plan) -> None:
        """Remember who took part, and count the uses of every row."""
        newest = self.picks.new_tensor([[plan.index, client] for client in plan.participants])
        self.picks = torch.cat([self.picks[self.picks[:, 0] > plan.index - self.window], newest])
        rows = np.concatenate([batch.rows for batches in plan.batches for batch in batches])
        self.uses = self.uses + torch.from_numpy(rows).to(self.uses.device).bincount(minlength=len(self.uses))

    def select(self, round: int, available: np.ndarray, participants: int, seed: int) -> list[int]:
        eligible = available[self.sizes[available] >= self.num_classes]
        enough = f"at most {len(eligible)}, the clients with as many rows as there are classes, for LabelAware"
        require(len(eligible) >= participants, "participants", participants, enough)
        seldom = self._seldom(round)
        scored = self._unused() if self.usage == "unused" else self.counts
        for attempt in range(self.max_retry):
            order = stream(seed, "label_selection", round, step=attempt).permutation(eligible)
            chosen = self._grown(order.tolist(), participants, seldom, scored)
            if self._covers(chosen, participants):
                return chosen
        raise ConfigError(
            f"LabelAware found no {participants} to {self.most(participants)} participants for round {round} that hold "
            f"all {self.num_classes} classes often enough for joint batches of {self.joint_rows} rows: try more "
            "participants, another batch size, or a more even partition"
        )

    def _seldom(self, round: int) -> np.ndarray:
        """Minus the number of times each client was chosen lately."""
        picks = self.picks.cpu().numpy()
        recent = picks[(picks[:, 0] >= round - self.window) & (picks[:, 0] < round), 1]
        return -np.bincount(recent, minlength=len(self.sizes))

    def _unused(self) -> np.ndarray:
        uses = self.uses.cpu().numpy()
        return label_counts(self.labels, [rows[uses[rows] == 0] for rows in self.rows], self.num_classes)

    def _grown(self, order: Sequence[int], participants: int, seldom: np.ndarray, scored: np.ndarray) -> list[int]:
        chosen, pool = list(order[:1]), list(order[1:])
        while pool and len(chosen) < self.most(participants) and not self._covers(chosen, participants):
            totals = self.counts[chosen].sum(axis=0)
            if self.usage == "fresh":
                best = self._freshest(chosen, pool, totals)
            else:
                rarest = (totals + scored[pool]).min(axis=1)
                score = self.alpha * scaled(rarest) + (1 - self.alpha) * (1 - scaled(-seldom[pool]))
                best = int(np.argmax(score))
            chosen = self._without_small([*chosen, pool.pop(best)], participants)
        return chosen

    def _freshest(self, chosen: Sequence[int], pool: Sequence[int], totals: np.ndarray) -> int:
        together = totals + self.counts[pool]
        order = np.lexsort((-together.min(axis=1), (together == 0).sum(axis=1)))[: self.top_n]
        return int(order[np.argmax([self._freshness(chosen, pool[place]) for place in order])])

    def _freshness(self, chosen: Sequence[int], candidate: int) -> float:
        needs = balance_counts(self.counts[[*chosen, candidate]], "trimming")[-1]
        rows = self.rows[candidate]
        labels, uses = self.labels[rows], self.uses.cpu().numpy()[rows]
        of_class = (bins_of(uses[labels == label]) for label in range(self.num_classes))
        pairs = zip(needs.tolist(), of_class, strict=True)
        return sum(freshness(need, bins, self.freshness_decay) for need, bins in pairs)

    def _joint(self, chosen: Sequence[int], participants: int) -> int:
        """Rows of one joint batch of these clients."""
        return self.joint_rows * max(len(chosen), participants) // participants

    def _without_small(self, chosen: list[int], participants: int) -> list[int]:
        if self.joint_rows <= SMALL_BATCH:
            return chosen
        share = self._joint(chosen, participants) * self.sizes // self.sizes[chosen].sum()
        return [client for client in chosen if share[client] >= self.num_classes]

    def _covers(self, chosen: Sequence[int], participants: int) -> bool:
        wanted = max(1, self._joint(chosen, participants) // self.num_classes)
        return len(chosen) >= participants and bool(self.counts[list(chosen)].sum(axis=0).min() >= wanted)


def scaled(values: np.ndarray) -> np.ndarray:
    """Values brought to 0..1; all 0 where they are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros(len(values))
