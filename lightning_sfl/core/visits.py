"""Asynchronous clients in their slots: each trains its share of batches, hands in, and makes room for another."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_sfl.core.clock import Clock, Durations
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.rounds import Batch, Plan, Work, draw_batches


@dataclass
class Visit:
    """A client in a slot.

    batches: the rows of each batch it is to train on; start: batches of its endless series that it has had before;
    done: batches of this visit; count: its progress n in the statistics' weights; loaded: it has got its half, which
    had been merged `version` times; rows: trained on in this round.
    """

    client: int
    batches: Sequence[np.ndarray]
    start: int
    count: int
    done: int = 0
    loaded: bool = False
    rows: int = 0
    version: int = 0

    @property
    def over(self) -> bool:
        return self.done == len(self.batches)

    @property
    def num_rows(self) -> int:
        """Rows of the whole visit, repetitions counted."""
        return sum(len(batch) for batch in self.batches)


class Visits:
    """Who is in which slot, and whose batch arrives next, on a simulated clock or in any order.

    A client's batches go on in a later visit where they ended, through endless passes over its rows.
    """

    def __init__(self, seed: int, work: Work, takes: Sequence[Durations], at_random: bool) -> None:
        self.seed, self.work, self.takes, self.at_random = seed, work, takes, at_random
        self.in_slot: dict[int, Visit] = {}
        self.left: dict[int, int] = {}
        self.drawn: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()
        self.clock = Clock()
        self.finished_s = 0.0

    @property
    def clients(self) -> tuple[int, ...]:
        """Who is there, by slot."""
        return tuple(self.in_slot[slot].client for slot in sorted(self.in_slot))

    @property
    def merges(self) -> int:
        """How often halves have been merged so far."""
        return self.counts["merges"]

    def missed(self, slot: int) -> int:
        """Merges since the client in this slot got its half: its staleness; 0 of who is about to get it."""
        visit = self.in_slot[slot]
        return self.merges - visit.version if visit.loaded else 0

    def in_time(self, slot: int, max_missed: int | None) -> bool:
        """Whether what the client in this slot hands in now still counts; null: it always does."""
        return max_missed is None or self.missed(slot) <= max_missed

    def admit(self, slot: int, client: int, rows: np.ndarray, count: int) -> None:
        """A client with these rows takes a slot, at the time at which the last one left it."""
        start = self.drawn[client]
        batches = draw_batches(self.seed, 0, client, rows, self.work, start)
        self._seat(slot, Visit(client, batches, start, count))
        self.drawn[client] += len(batches)

    def start_together(self, plan: Plan, count: int) -> None:
        """The clients of a plan take the slots, when all of the round before have handed in."""
        for slot, client in enumerate(plan.participants):
            self.clock.ready_s[slot] = self.finished_s
            self._seat(slot, Visit(client, [batch.rows for batch in plan.batches[slot]], 0, count))

    def _seat(self, slot: int, visit: Visit) -> None:
        self.in_slot[slot] = visit
        self.counts["visits"] += 1
        self.clock.forward(slot, self.takes[visit.client])

    def newcomer(self, slot: int, available: Sequence[int]) -> int:
        """Who comes after the last client of this slot: any of those in no slot; the same again if there is none."""
        busy = {*self.clients, self.left[slot]}
        idle = [int(client) for client in available if client not in busy]
        draws = stream(self.seed, "newcomer", step=self.counts["visits"])
        return int(draws.choice(idle)) if idle else self.left[slot]

    def next(self) -> tuple[int, Batch]:
        """The slot from which a batch arrives next, and the batch."""
        slots = sorted(self.in_slot)
        draws = stream(self.seed, "arrivals", step=self.counts["arrivals"])
        slot = int(draws.choice(slots)) if self.at_random else self.clock.next(slots)
        self.counts["arrivals"] += 1
        visit = self.in_slot[slot]
        return slot, Batch(slot, visit.client, visit.start + visit.done, visit.batches[visit.done])

    def step(self, slot: int) -> bool:
        """The client has taken its step: on to its next batch, unless it has had the last one and hands in."""
        visit = self.in_slot[slot]
        takes = self.takes[visit.client]
        visit.rows += len(visit.batches[visit.done])
        visit.done += 1
        self.clock.backward(slot, takes)
        if visit.over:
            self.finished_s = max(self.finished_s, self.clock.hand_in(slot, takes))
        else:
            self.clock.forward(slot, takes)
        return visit.over

    def rows_under_way(self) -> int:
        """Rows of the batches that the clients in all slots are at."""
        return sum(len(visit.batches[visit.done]) for visit in self.in_slot.values())

    def arrivals_until(
        self,
        hand_ins: int,
        rows: Sequence[np.ndarray],
        newcomers: Sequence[int] | None = None,
        max_missed: int | None = None,
    ) -> int:
        """Batches that will arrive until so many clients have handed in in time; `newcomers` take the places of all.

        The clock knows nothing of training, so the future can be played through beforehand.
        """
        ahead = copy.deepcopy(self)
        arrivals = 0
        while hand_ins:
            slot, _ = ahead.next()
            arrivals += 1
            if ahead.step(slot):
                hand_ins -= ahead.in_time(slot, max_missed)
                ahead.leave(slot)
                if hand_ins and newcomers is not None:
                    client = ahead.newcomer(slot, newcomers)
                    ahead.admit(slot, client, rows[client], 0)
        return arrivals

    def leave(self, slot: int) -> Visit:
        """The slot is free."""
        visit = self.in_slot.pop(slot)
        self.left[slot] = visit.client
        return visit

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        seats = {s: [v.client, v.start, v.count, v.done, int(v.loaded)] for s, v in self.in_slot.items()}
        versions = {slot: visit.version for slot, visit in self.in_slot.items()}
        kept = {"left": dict(self.left), "drawn": dict(self.drawn), "counts": dict(self.counts), "versions": versions}
        return {"in_slot": seats, "ready_s": dict(self.clock.ready_s), "finished_s": self.finished_s, **kept}

    def load(self, state: dict[str, Any], rows: Sequence[np.ndarray]) -> None:
        """Take up what `state` gave; rows[i] are the rows of client i."""
        for slot, (client, start, count, done, loaded) in state["in_slot"].items():
            batches = draw_batches(self.seed, 0, client, rows[client], self.work, start)
            version = state.get("versions", {}).get(slot, 0)
            self.in_slot[slot] = Visit(client, batches, start, count, done, bool(loaded), version=version)
        self.clock.ready_s.update(state["ready_s"])
        self.finished_s, self.left = state["finished_s"], dict(state["left"])
        self.drawn, self.counts = Counter(state["drawn"]), Counter(state["counts"])
