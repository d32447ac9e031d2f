"""Rounds to which not all come that are asked, or which not all finish."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from lightning_sfl.core import events
from lightning_sfl.core.attendance import EVERYBODY, Attendance, Pace, cut_short
from lightning_sfl.core.clock import durations
from lightning_sfl.core.errors import require
from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.selection import FixedSchedule, read_rounds
from lightning_sfl.methods.informed import Informed


class Attending(Informed):
    """Asks clients, plans with those that come, and cuts short what is not done in time.

    why_full, why_not_hurried: what to answer where clients cannot stay away, or cannot be late.
    timed: whether the simulated time of a client follows from its steps and rows.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        attendance: clients that stay away or are too slow; by default all that are asked come and are done.
        kwargs: options of `SplitModule`.
    """

    why_full: ClassVar[str] = ""
    why_not_hurried: ClassVar[str] = ""
    one_at_a_time: ClassVar[bool] = False
    timed: ClassVar[bool] = True

    def __init__(
        self, backbone: nn.Module, cut_layer: str, *, attendance: Attendance = EVERYBODY, **kwargs: Any
    ) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        self.attendance = attendance
        self.check_attendance()
        self.trace = None if attendance.trace is None else read_rounds("attendance.trace", attendance.trace)
        self.called_off, self.elapsed_s = 0, 0.0
        self.attended: dict[str, float] = {}

    def check_attendance(self) -> None:
        """Refuse what has no meaning for this method and selection."""
        given, owner = self.attendance, type(self).__name__
        why = self.why_not_hurried or ("one client steps at a time" if self.one_at_a_time else "")
        for key, value in vars(given).items():
            own = self.why_full or (why if key in ("overcommit", "deadline_s") else "")
            as_usual = value == getattr(EVERYBODY, key)
            require(as_usual or not own, f"attendance.{key}", value, f"{getattr(EVERYBODY, key)} in {owner}, as {own}")
        few = given.quorum <= self.participants
        require(few, "attendance.quorum", given.quorum, f"at most participants={self.participants}")
        free = given.trace is None or not isinstance(self.selection, FixedSchedule)
        require(free, "attendance.trace", given.trace, "null with FixedSchedule, which lists the participants itself")

    @property
    def asked(self) -> int:
        """Clients that are asked to take part."""
        return self.attendance.asked(self.participants)

    def prepare(self, data: Any, stage: str) -> None:
        """Cut the network, and see that a quorum is possible."""
        super().prepare(data, stage)
        if stage == "fit":
            count = self.population.num_clients
            self.attendance.check(count, self.available.tolist())
            strangers = sorted({client for listed in self.trace or () for client in listed if not 0 <= client < count})
            allowed = f"a list of clients from 0 to {count - 1}, which {str(strangers)[1:-1]} is not"
            require(not strangers, "attendance.trace", self.attendance.trace, allowed)

    @property
    def looks_at_time(self) -> bool:
        return super().looks_at_time or not self.attendance.is_full

    @property
    def fewest_merged(self) -> int:
        fewest = super().fewest_merged
        return fewest if self.attendance.is_full else min(fewest, self.attendance.quorum)

    def attending(self, index: int) -> list[int]:
        """Who comes to round `index`."""
        reachable = self.available
        if self.trace is not None:
            listed = self.trace[index % len(self.trace)]
            reachable = reachable[[client in listed for client in reachable.tolist()]]
        if not len(reachable):
            return []
        return self.attendance.come(self.selection.select(index, reachable, self.asked, self.seed), index, self.seed)

    def takes_place(self, index: int) -> bool:
        """Whether enough clients come."""
        return self.attendance.is_full or len(self.attending(index)) >= self.attendance.quorum

    # --- time -------------------------------------------------------------------------------------------------------

    def pace(self, client: int) -> Pace:
        """How fast a client is."""
        takes = durations(self.cell, self.work_costs, self.seed, client, 1, self.num_slots)
        return Pace(2 * takes.process_s, takes.send_batch_s, takes.send_model_s)

    def took_s(self, client: int, steps: int, rows: int, finished: bool) -> float:
        """Simulated seconds of so many steps of a client, on so many rows, and of sending what it has trained."""
        pace = self.pace(client)
        return steps * pace.batch_s + rows * pace.row_s + finished * pace.send_s

    def in_time(self, plan: Plan) -> Plan:
        """What of the plan is done when the round ends."""
        if self.attendance.is_full:
            return plan
        paces = [self.pace(client) for client in plan.participants]
        wanted = self.participants if self.attendance.overcommit > 1 else len(paces)
        shortened, seconds = cut_short(plan, paces, wanted, self.attendance.deadline_s, self.attendance.quorum)
        if self.one_at_a_time:
            seconds = sum(pace.ends(own)[-1] + pace.send_s for pace, own in zip(paces, plan.batches, strict=True))
        self.note_attendance(came=len(paces), finished=len(shortened.finishers), seconds=seconds)
        return shortened

    # --- what is told -----------------------------------------------------------------------------------------------

    def note_attendance(self, came: int, finished: int, seconds: float) -> None:
        """Count the round that begins."""
        self.elapsed_s += seconds
        told = {"came": came, "finished": finished, "called_off_total": self.called_off, "sim_time_s": self.elapsed_s}
        self.attended = {f"attendance/{name}": float(value) for name, value in told.items()}

    def call_off(self, index: int) -> None:
        """A round without training, told like any other; who counts optimizer steps counts one that moves nothing."""
        self.called_off += 1
        self.note_attendance(came=len(self.attending(index)), finished=0, seconds=0.0)
        self.boundary.start_round(index)
        self.emit(events.RoundStart, (), self.client_half, self.server_half)
        for role in self.roles:
            self.forget_gradients(self.stepped[role])
            self.step(role)
        self.emit(events.RoundEnd, self.client_half, self.server_half, {}, self.attended)

    def memory(self) -> dict[str, Any]:
        counted = {"called_off": self.called_off, "elapsed_s": self.elapsed_s}
        return {**super().memory(), **({} if self.attendance.is_full else {"attendance": counted})}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        counted = memory.get("attendance", {"called_off": 0, "elapsed_s": 0.0})
        self.called_off, self.elapsed_s = counted["called_off"], counted["elapsed_s"]
