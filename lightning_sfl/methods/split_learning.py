"""Split learning: one client after another, each starting from the weights of the one before.

O. Gupta, R. Raskar, "Distributed learning of deep neural network over multiple agents", J. Network and Computer
Applications 116 (2018). Nothing is averaged.

    for each client in turn:  start from the previous client's end state; all its batches through the one server half
    client half <- the last client's end state;  server half: as trained
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.core.rounds import Batch, Plan
from lightning_sfl.core.state import copy_state
from lightning_sfl.methods.base import SplitMethod


class SplitLearning(SplitMethod):
    """The client half is relayed from client to client; results depend on `client_order`."""

    name = "split_learning"
    one_at_a_time = True
    why_not_local = why_only_averaged = "the client half goes on from client to client, nothing is merged"

    def steps(self, plan: Plan) -> Iterator[list[Batch]]:
        return plan.sequential()

    def start_of(self, slot: int) -> nn.Module:
        return self.brought(slot - 1) if slot > 0 and not self.starts_merged else self.client_half

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        return self.train_server([uploads])

    def merge(self, plan: Plan) -> None:
        if self.starts_merged:  # nothing was handed on, so that all ends count: this is SplitFed V2
            super().merge(plan)
        else:
            copy_state(self.slots[len(plan.participants) - 1], self.client_half)
