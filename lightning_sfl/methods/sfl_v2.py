"""SplitFed V2, client after client, as its released code runs it.

C. Thapa, M. A. P. Chamikara, S. Camtepe, L. Sun, "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022,
SFLV2. A client finds the server half already trained by those before it.

    for each client in turn:  start from the global client half; all its batches through the one server half
    client half <- weighted average;  server half: as trained
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.core.rounds import Batch, Plan
from lightning_sfl.methods.base import SplitMethod


class SFLV2(SplitMethod):
    """One server half, one client after another; results depend on `client_order`."""

    name = "sfl_v2"
    one_at_a_time = True

    def steps(self, plan: Plan) -> Iterator[list[Batch]]:
        return plan.sequential()

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        return self.train_server([uploads])
