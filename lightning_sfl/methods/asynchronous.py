"""Methods whose clients do not wait for each other: batches arrive one by one, on a simulated clock.

Everybody in a slot trains on through the rounds, until it has had its share of batches and hands in its half; then
another client takes the slot. A round is over when enough halves have been handed in to be merged. In the story that
is told to watchers each of them starts anew in every round, from where it stands, and ends, unfinished, with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_sfl.core import events
from lightning_sfl.core.aggregation import Weighting
from lightning_sfl.core.clock import CELL, Cell, durations
from lightning_sfl.core.cut import Upload
from lightning_sfl.core.errors import require
from lightning_sfl.core.rounds import Batch, Plan, in_order
from lightning_sfl.core.selection import Uniform
from lightning_sfl.core.state import load_state, state_of
from lightning_sfl.core.visits import Visits
from lightning_sfl.methods.handing_in import HandingIn


class AsynchronousMethod(HandingIn):
    """The loop of arrivals; a method says what the server does with each of them.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        model_buffer: client halves that are merged at a time, null for as many as there are slots.
        participation: a client that is done makes room for another at once, or all of a round start it together.
        arrival: the client that is ready first is next, or any.
        client_momentum: each client's optimizer state is its own, or all clients pass one on from step to step, as the
            released code of GAS has it.
        cell: how fast clients compute and send.
        weighting: a client's weight in the merge: uniform, its number of samples, or of rows trained on in its visit.
        kwargs: options of `HandingIn`.
    """

    one_at_a_time = True
    why_full = why_not_together = "clients come and go on its own clock"
    why_same_work = "visits go on from round to round"

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        *,
        model_buffer: int | None = None,
        participation: Literal["replaced", "per_round"] = "replaced",
        arrival: Literal["clock", "random"] = "clock",
        client_momentum: Literal["per_slot", "shared"] = "per_slot",
        cell: Cell = CELL,
        weighting: Weighting = "uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, cut_layer, weighting=weighting, cell=cell, **kwargs)
        require(model_buffer is None or model_buffer >= 1, "model_buffer", model_buffer, "an integer >= 1, or null")
        drawn = participation == "per_round" or isinstance(self.selection, Uniform)
        require(drawn, "participation", participation, "per_round where a schedule lists the participants")
        alone = participation == "replaced" or model_buffer is None
        require(alone, "model_buffer", model_buffer, "null where participation is per_round: a round merges them all")
        self.model_buffer, self.participation, self.arrival = model_buffer, participation, arrival
        self.client_momentum, self.moved_last = client_momentum, 0
        self.handed_on = client_momentum == "shared"

    @property
    def num_active(self) -> int:
        """Slots in use."""
        return min(self.num_slots, len(self.available))

    @property
    def fewest_merged(self) -> int:
        return self.model_buffer or super().fewest_merged

    def prepare(self, data: Any, stage: str) -> None:
        super().prepare(data, stage)
        if stage == "fit" and self.visits is None:
            costs = self.costs(data.example()[:1])
            sizes = [self.work.rows_per_step(size) if size else 0 for size in self.population.sizes]
            takes = [durations(self.cell, costs, self.seed, k, size, self.num_active) for k, size in enumerate(sizes)]
            self.visits = Visits(self.seed, self.work, takes, self.arrival == "random")

    def newcomer_count(self) -> int:
        """Progress that a client starts with, where a method counts it."""
        return 0

    @property
    def knows_schedule(self) -> bool:
        return self.participation == "per_round" and super().knows_schedule

    def _who(self, rounds: int) -> str:
        if self.participation == "per_round":
            return super()._who(rounds)
        return "replaced one by one as they hand in, so without a fingerprint"

    # --- a round ----------------------------------------------------------------------------------------------------

    def plan(self, index: int) -> Plan:
        if self.participation == "per_round":
            return self.follow(super().plan(index))
        first = in_order(self.participants_of(0), self.client_order, self.seed, 0)
        for slot in range(len(first)):
            if slot not in self.visits.in_slot:
                self.admit(slot, first[slot] if slot not in self.visits.left else None)
        self.quorum = self.model_buffer or len(first)
        return Plan(index, self.visits.clients, ())

    def follow(self, plan: Plan) -> Plan:
        """Its clients start together, and nobody takes the place of one that is done."""
        self.participation = "per_round"
        self.visits.start_together(plan, self.newcomer_count())
        self.quorum = len(plan.participants)
        return plan

    def admit(self, slot: int, client: int | None = None) -> None:
        """A client, or whoever the draw says, takes a free slot."""
        client = self.visits.newcomer(slot, self.available) if client is None else client
        self.visits.admit(slot, client, self.population.rows[client], self.newcomer_count())

    def steps(self, plan: Plan) -> Iterator[list[Batch]]:
        self.missed, self.dropped = [], 0
        for slot in sorted(self.visits.in_slot):
            self.enter(slot)
        while len(self.handed_in) < self.quorum and self.visits.in_slot:  # nobody is left where all came together
            slot, batch = self.visits.next()
            yield [batch]
            if self.visits.step(slot):
                self.leave(slot)

    def enter(self, slot: int) -> None:
        """A client begins, or goes on in another round from where it stands."""
        visit = self.visits.in_slot[slot]
        visit.rows, self.steps_taken[slot] = 0, 0
        if visit.loaded and self.starts_merged:
            self.keep_own(slot, visit.client)
        if not visit.loaded or self.starts_merged:
            self.load_slot(slot)
            self.give_own(slot, visit.client)
            if self.link.holds(slot):
                self.receive_weights(slot)
            visit.loaded, visit.version = True, self.visits.merges
        self.emit(events.ClientStart, slot, visit.client, self.slots[slot], self.private_server(slot))

    def leave(self, slot: int) -> None:
        """A client hands in its half; another takes its place, unless the round is over."""
        self.bring([slot])
        if self.link.holds(slot):
            self.send_weights(slot)
        self.keep_own(slot, self.visits.in_slot[slot].client)
        counts = self.visits.in_time(slot, self.max_staleness)
        weight = self.tell_end(slot, finished=counts)
        if counts:
            self.take_in(slot, weight)
        self.dropped += not counts
        self.visits.leave(slot)
        if self.client_momentum == "per_slot":
            for parameter in self.parameters_in(slot):
                self.optimizer("client").optimizer.state.pop(parameter, None)
        if self.participation == "replaced" and len(self.handed_in) < self.quorum:
            self.admit(slot)
            self.enter(slot)

    def tell_end(self, slot: int, finished: bool) -> float:
        """Tell what a client did in this round; its weight in the merge."""
        visit = self.visits.in_slot[slot]
        weight = self.weight_of(visit.client, visit.num_rows)
        self.emit(
            events.ClientEnd, slot, visit.client, self.slots[slot], self.private_server(slot), visit.rows,
            self.steps_taken[slot], weight, finished, self.visits.missed(slot),
        )  # fmt: skip
        return weight

    def end_clients(self, plan: Plan) -> None:
        self.bring(sorted(self.visits.in_slot))
        for slot in sorted(self.visits.in_slot):
            self.tell_end(slot, finished=False)

    def begin(self, batches: Sequence[Batch]) -> None:
        """Clients are loaded when they enter."""

    def take_turn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.population.take(batch.rows)

    def uploads_ahead(self, plan: Plan) -> dict[int, int]:
        newcomers = self.available if self.participation == "replaced" else None
        most = None if self.starts_merged else self.max_staleness
        return {0: self.visits.arrivals_until(self.quorum, self.population.rows, newcomers, most)}

    def joint_rows(self, upload: Upload) -> int:
        return self.visits.rows_under_way()

    def step_clients(self, turns: Sequence[events.Turn], cut_gradients: Sequence[Tensor] = ()) -> None:
        if self.client_momentum == "shared":
            self.pass_on_momentum(turns[0].slot)
        super().step_clients(turns, cut_gradients)

    def pass_on_momentum(self, slot: int) -> None:
        """The optimizer's state of the client that moved last becomes that of the client in this slot."""
        state = self.optimizer("client").optimizer.state
        for last, next in zip(self.parameters_in(self.moved_last), self.parameters_in(slot), strict=True):
            if slot != self.moved_last and last in state:
                state[next] = state.pop(last)
        self.moved_last = slot

    # --- what lasts -------------------------------------------------------------------------------------------------

    def lasting(self, role: Any) -> bool:
        return role == "client" or super().lasting(role)

    def memory(self) -> dict[str, Any]:
        if self.visits is None:
            return super().memory()
        kept = {"slots": {slot: state_of(self.slots[slot]) for slot in self.visits.in_slot}}
        if self.server_copies:
            kept["server_slots"] = {slot: state_of(self.server_slots[slot]) for slot in self.visits.in_slot}
        return {**super().memory(), **kept, "visits": self.visits.state(), "moved_last": self.moved_last}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        self.visits.load(memory["visits"], self.population.rows)
        self.moved_last = memory["moved_last"]
        for name in ("slots", "server_slots"):
            for slot, state in memory.get(name, {}).items():
                load_state(getattr(self, name)[slot], state)
