"""Methods without a cut whose clients wait for each other: in a round all of them train whole networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_sfl.core.rounds import Batch
from lightning_sfl.methods.base import SplitMethod


class WholeMethod(SplitMethod):
    """The round of FedAvg; a method says how a client steps, or what becomes of what clients hand in.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        kwargs: options of the clients' side of `SplitMethod`.
    """

    server_copies = True
    whole_on_client = True
    whole_loss = ""

    def __init__(self, backbone: nn.Module, cut_layer: str, **kwargs: Any) -> None:
        super().__init__(
            backbone,
            cut_layer,
            server_optimizer=None,
            server_scheduler=None,
            server_clip=None,
            persist_server_optimizer=False,
            **kwargs,
        )

    def trained(self) -> dict[Any, list[nn.Parameter]]:
        return {"client": [*self.slots.parameters(), *self.server_slots.parameters()]}

    def local_step(self, batches: Sequence[Batch]) -> None:
        self.backward_uncut(batches)
        self.step_clients(batches)
