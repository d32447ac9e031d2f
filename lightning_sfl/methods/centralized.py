"""Centralized training: all clients' rows in one place, both halves trained end to end; the upper reference.

for each batch of the pooled rows:  one step of the whole network
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_sfl.core.rounds import Batch, Plan, plan_round
from lightning_sfl.core.state import copy_state
from lightning_sfl.methods.base import SplitMethod


class Centralized(SplitMethod):
    """One pooled client, which is client 0; nothing crosses the cut, which only says what each optimizer steps."""

    name = "centralized"
    one_process = "all rows are trained on in one place"
    one_at_a_time = True
    chooses = timed = False
    why_not_local = why_only_averaged = why_full = "there are no clients"

    @property
    def num_slots(self) -> int:
        return 1

    def participants_of(self, index: int) -> list[int]:
        return [0]

    def plan(self, index: int) -> Plan:
        pooled = np.concatenate(self.population.rows)
        return plan_round(self.seed, index, [0], [pooled], self.work, self.client_order)

    def follow(self, plan: Plan) -> Plan:
        """The batches that clients would take side by side are one."""
        pooled = [np.concatenate([batch.rows for batch in sweep]) for sweep in plan.interleaved()]
        return Plan(plan.index, (0,), (tuple(Batch(0, 0, step, rows) for step, rows in enumerate(pooled)),))

    def local_step(self, batches: Sequence[Batch]) -> None:
        self.backward_uncut(batches)
        self.step_server([self.server_turn(batches)])
        self.step_clients([self.client_turn(batch) for batch in batches])

    def merge(self, plan: Plan) -> None:
        copy_state(self.slots[0], self.client_half)

    def receive_weights(self, slot: int) -> None:
        """Nothing travels."""

    def send_weights(self, slot: int) -> None:
        """Nothing travels."""
