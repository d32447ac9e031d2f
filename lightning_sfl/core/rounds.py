"""The plan of a round: who trains, on which rows, in which order. It follows from (seed, round) alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal

import numpy as np
from torch import Tensor

from lightning_sfl.core.population import Population
from lightning_sfl.core.randomness import stream

ClientOrder = Literal["sorted", "selected", "shuffled"]


@dataclass(frozen=True)
class Work:
    """How much a client does in one round.

    batch_size: rows per local step, None for all rows at once; local_epochs: passes over the client's own rows, the
    last batch of a pass may be short; local_steps, instead of local_epochs: that many batches, passing on as often as
    needed; drop_last: a pass leaves the rows out that do not fill a batch.
    """

    batch_size: int | None
    local_epochs: int
    local_steps: int | None = None
    drop_last: bool = False

    def rows_per_step(self, num_rows: int) -> int:
        """Rows of a full batch of a client with so many rows; smaller clients give all they have."""
        return min(self.batch_size or num_rows, num_rows)

    def steps_per_pass(self, num_rows: int) -> int:
        """Batches that such a client makes of one pass over its rows."""
        size = self.rows_per_step(num_rows)
        return num_rows // size if self.drop_last else -(-num_rows // size)

    def steps(self, num_rows: int) -> int:
        """Batches that such a client trains on in one round."""
        return self.local_epochs * self.steps_per_pass(num_rows) if self.local_steps is None else self.local_steps


@dataclass(frozen=True)
class Batch:
    """A turn of one client: its `local_step`-th batch of this round.

    sweep: the lock-step sweep it belongs to, where clients may sit some out; None for the `local_step`-th.
    """

    slot: int
    client_id: int
    local_step: int
    rows: np.ndarray
    sweep: int | None = None

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def place(self) -> int:
        """Number of its sweep."""
        return self.local_step if self.sweep is None else self.sweep


@dataclass(frozen=True)
class Plan:
    """Round `index`: participants[i] sits in slot i and trains on batches[i][0], batches[i][1], ...

    late: slots of those that are not done when the round ends, and hand in nothing. dropped: clients that have not
    even one batch done by then, and so no slot.
    """

    index: int
    participants: tuple[int, ...]
    batches: tuple[tuple[Batch, ...], ...]
    late: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()

    @property
    def finishers(self) -> list[int]:
        """Slots of those that hand in what they have trained."""
        return [slot for slot in range(len(self.participants)) if slot not in self.late]

    def interleaved(self) -> Iterator[list[Batch]]:
        """Lock-step sweeps: in sweep t every client that has a t-th batch takes it; short clients drop out."""
        sweeps: dict[int, list[Batch]] = {}
        for batch in chain.from_iterable(self.batches):
            sweeps.setdefault(batch.place, []).append(batch)
        for number in sorted(sweeps):
            yield sweeps[number]

    def sequential(self) -> Iterator[list[Batch]]:
        """One client after another, each through all of its batches."""
        for batches in self.batches:
            for batch in batches:
                yield [batch]

    def sweep_rows(self) -> Counter[int]:
        """Rows of all participants together in each lock-step sweep, by its number."""
        found: Counter[int] = Counter()
        for batch in chain.from_iterable(self.batches):
            found[batch.place] += batch.num_rows
        return found

    @property
    def num_rows(self) -> list[int]:
        """Rows each participant trains on in this round, repetitions counted."""
        return [sum(len(batch.rows) for batch in batches) for batches in self.batches]


def plan_round(
    seed: int,
    index: int,
    participants: Sequence[int],
    rows: Sequence[np.ndarray],
    work: Work | Sequence[Work],
    order: ClientOrder,
) -> Plan:
    """Plan for these participants; rows[i] are the rows of participants[i]. One listed twice goes on where it was.

    work: of all alike, or work[i] of participants[i].
    """
    works = [work] * len(participants) if isinstance(work, Work) else work
    own = dict(zip(participants, zip(rows, works, strict=True), strict=True))
    ordered = in_order(participants, order, seed, index)
    drawn: Counter[int] = Counter()
    batches = []
    for slot, client in enumerate(ordered):
        found = draw_batches(seed, index, client, *own[client], drawn[client])
        batches.append(tuple(Batch(slot, client, step, b) for step, b in enumerate(found)))
        drawn[client] += len(found)
    return Plan(index, tuple(ordered), tuple(batches))


def proportional_sizes(batch_size: int, num_rows: Sequence[int]) -> list[int]:
    """Batches of `batch_size` rows on average, as large as the clients are: max(1, floor(N_i * batch_size * n / N)).

    In whole numbers: in floating point 0.29 * 100 is 28.999999999999996, which cuts a row off.
    """
    together, total = batch_size * len(num_rows), sum(num_rows)
    return [max(1, own * together // total) for own in num_rows]


def plan_sweeps(index: int, ordered: Sequence[int], sweeps: Sequence[Mapping[int, np.ndarray]]) -> Plan:
    """Plan of a round in lock-step: sweeps[t][client] are its rows in sweep t, and no rows are no turn.

    Who has no turn in the whole round does not take part.
    """
    turns = {client: [t for t, rows in enumerate(sweeps) if len(rows.get(client, ()))] for client in ordered}
    active = [client for client in ordered if turns[client]]
    batches = tuple(
        tuple(Batch(slot, client, step, sweeps[t][client], t) for step, t in enumerate(turns[client]))
        for slot, client in enumerate(active)
    )
    return Plan(index, tuple(active), batches)


def in_order(participants: Sequence[int], order: ClientOrder, seed: int, index: int) -> list[int]:
    """Participants by id, as they were selected, or shuffled anew each round."""
    if order == "sorted":
        return sorted(participants)
    if order == "selected":
        return list(participants)
    return [int(c) for c in stream(seed, "client_order", index).permutation(sorted(participants))]


def draw_batches(seed: int, index: int, client: int, rows: np.ndarray, work: Work, start: int = 0) -> list[np.ndarray]:
    """A client's batches in one round: each pass is a fresh permutation of its rows, cut into batches.

    start: leave out so many batches of the endless series, which an earlier visit has had.
    """
    size, per_pass, steps = work.rows_per_step(len(rows)), work.steps_per_pass(len(rows)), work.steps(len(rows))
    first = start // per_pass
    batches: list[np.ndarray] = []
    for number in range(first, -(-(start + steps) // per_pass)):
        batches += draw_pass(seed, index, client, number, rows, size)[:per_pass]
    skipped = start - first * per_pass
    return batches[skipped : skipped + steps]


def draw_pass(
    seed: int, index: int, client: int, number: int, rows: np.ndarray, sizes: int | Sequence[int]
) -> list[np.ndarray]:
    """One pass of a client, its `number`-th in this round: its rows shuffled and cut into batches of these sizes.

    One size: as many batches as it takes, the last may be short. A list: exactly these, rows that are left stay out.
    """
    shuffled = stream(seed, "batches", index, client, number).permutation(rows)
    if isinstance(sizes, int):
        return [shuffled[start : start + sizes] for start in range(0, len(rows), sizes)]
    ends = np.cumsum([0, *sizes])
    return [shuffled[start:end] for start, end in pairwise(ends)]


class Feed:
    """Hands out the tensors of a plan's batches; rows of one slot are gathered in few large strokes."""

    def __init__(self, population: Population, plan: Plan, ahead_rows: int = 4096) -> None:
        self.population = population
        self.plan = plan
        self.ahead_rows = ahead_rows
        self._ready: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def take(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a batch; each batch is handed out once."""
        key = (batch.slot, batch.local_step)
        if key not in self._ready:
            self._gather(self.plan.batches[batch.slot][batch.local_step :])
        return self._ready.pop(key)

    def _gather(self, coming: Sequence[Batch]) -> None:
        count, rows = 1, len(coming[0].rows)
        while count < len(coming) and rows + len(coming[count].rows) <= self.ahead_rows:
            rows += len(coming[count].rows)
            count += 1
        chosen = coming[:count]
        x, y = self.population.take(np.concatenate([batch.rows for batch in chosen]))
        sizes = [len(batch.rows) for batch in chosen]
        for batch, inputs, labels in zip(chosen, x.split(sizes), y.split(sizes), strict=True):
            self._ready[batch.slot, batch.local_step] = (inputs, labels)


def schedule_fingerprint(rounds: Sequence[Sequence[int]]) -> str:
    """Eight hex digits of who takes part when."""
    text = ";".join(",".join(map(str, clients)) for clients in rounds)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
