"""Who of the clients that are asked to take part comes, and who of them is done in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from lightning_sfl.core.errors import require
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.rounds import Batch, Plan


@dataclass(frozen=True)
class Attendance:
    """Clients that stay away, or are too slow.

    Args:
        availability: chance that a client which is asked comes, drawn for each client and round; or a list of chances,
            one for each client of the population, 0 being one that never comes.
        trace: JSON file that lists the clients that can be asked, round by round, as FixedSchedule's does; after its
            last round it begins anew. Null for all.
        overcommit: as many times `participants` clients are asked, rounded up; the first `participants` that are done
            end the round.
        deadline_s: simulated seconds after which the round ends, as soon as `quorum` clients are done; null for never.
        quorum: if fewer clients come, the round is called off: nothing is trained, nothing changes, and it is counted.
    """

    availability: float | list[float] = 1.0
    trace: str | None = None
    overcommit: float = 1.0
    deadline_s: float | None = None
    quorum: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.availability, list):
            for client, chance in enumerate(self.availability):
                require(0 <= chance <= 1, f"attendance.availability[{client}]", chance, "from 0 to 1")
        else:
            require(0 < self.availability <= 1, "attendance.availability", self.availability, "above 0, at most 1")
        require(1 <= self.overcommit < math.inf, "attendance.overcommit", self.overcommit, "a finite number >= 1")
        late = self.deadline_s is None or 0 < self.deadline_s < math.inf
        require(late, "attendance.deadline_s", self.deadline_s, "a finite number > 0, or null")
        require(self.quorum >= 1, "attendance.quorum", self.quorum, "an integer >= 1")

    @property
    def common(self) -> float | None:
        """The chance that every client has; None where they differ."""
        chances = {*self.availability} if isinstance(self.availability, list) else {self.availability}
        return chances.pop() if len(chances) == 1 else None

    @property
    def is_full(self) -> bool:
        """Whether everybody that is asked comes and is done."""
        return self.common == 1 and replace(self, availability=1.0) == EVERYBODY

    @property
    def hurries(self) -> bool:
        """Whether a round may end before all that came are done."""
        return self.overcommit > 1 or self.deadline_s is not None

    def asked(self, participants: int) -> int:
        """How many are asked where so many are wanted; 1.1 * 10 is 11 here, as one would expect."""
        return participants if self.overcommit == 1 else math.ceil(round(self.overcommit * participants, 9))

    def come(self, clients: Sequence[int], round: int, seed: int) -> list[int]:
        """Those of the clients that come."""
        if self.common == 1:
            return list(clients)
        return [c for c in clients if stream(seed, "attendance", round, c).random() < self.chance(c)]

    def chance(self, client: int) -> float:
        """That this client comes when it is asked."""
        return self.availability[client] if isinstance(self.availability, list) else self.availability

    def check(self, num_clients: int, with_data: Sequence[int]) -> None:
        """Refuse what does not fit a population of so many clients, of which these have data."""
        if isinstance(self.availability, list):
            given, allowed = len(self.availability), f"a number for all, or {num_clients}, one for each client"
            require(given == num_clients, "attendance.availability", f"{given} numbers", allowed)
        come = sum(self.chance(client) > 0 for client in with_data)
        allowed = f"at most {come}, the clients with data{'' if come == len(with_data) else ' that ever come'}"
        require(self.quorum <= come, "attendance.quorum", self.quorum, allowed)

    def said(self) -> list[str]:
        """What is not as by default, for the first screen."""
        told, usual = {**vars(self)}, vars(EVERYBODY)
        if isinstance(self.availability, list):
            told["availability"] = f"{min(self.availability)} to {max(self.availability)} by client"
        return [f"{key} {value}" for key, value in told.items() if value != usual[key]]


EVERYBODY = Attendance()


@dataclass(frozen=True)
class Pace:
    """Seconds that a client takes: for a batch apart from its rows, for each row, for sending what it has trained."""

    batch_s: float
    row_s: float
    send_s: float

    def ends(self, batches: Sequence[Batch]) -> list[float]:
        """When each of these batches is done."""
        return list(accumulate(self.batch_s + self.row_s * batch.num_rows for batch in batches))


def closing_time(done: Sequence[float], wanted: int, deadline_s: float | None, quorum: int) -> float:
    """When the round ends: once `wanted` clients are done, or at the deadline if `quorum` are done by then."""
    ordered = sorted(done)
    last = ordered[min(wanted, len(ordered)) - 1]
    return last if deadline_s is None else min(last, max(deadline_s, ordered[min(quorum, len(ordered)) - 1]))


def cut_short(
    plan: Plan, paces: Sequence[Pace], wanted: int, deadline_s: float | None, quorum: int
) -> tuple[Plan, float]:
    """The plan as far as it gets, and how long that takes.

    Who is not done keeps the batches that it has finished by then, and hands in nothing; who has not even one is left
    out. Of clients that are done at the same time those in the first slots are taken.
    """
    ends = [pace.ends(batches) for pace, batches in zip(paces, plan.batches, strict=True)]
    done = [own[-1] + pace.send_s for own, pace in zip(ends, paces, strict=True)]
    over_s = closing_time(done, wanted, deadline_s, quorum)
    first = sorted(range(len(done)), key=lambda slot: done[slot])[:wanted]
    finished = {slot for slot in first if done[slot] <= over_s}
    kept: list[tuple[Batch, ...]] = []
    late: list[int] = []
    for slot, batches in enumerate(plan.batches):
        count = len(batches) if slot in finished else sum(end <= over_s for end in ends[slot])
        if count:
            late += [] if slot in finished else [len(kept)]
            kept.append(tuple(replace(batch, slot=len(kept)) for batch in batches[:count]))
    clients = tuple(batches[0].client_id for batches in kept)
    dropped = tuple(client for client in plan.participants if client not in clients)
    return Plan(plan.index, clients, tuple(kept), tuple(late), dropped), over_s
