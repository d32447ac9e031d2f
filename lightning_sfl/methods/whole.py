"""Methods without a cut: clients train whole networks, waiting for each other in rounds, or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_sfl.core.rounds import Batch
from lightning_sfl.methods.base import SplitMethod


class WholeClients(SplitMethod):
    """Clients that hold both halves and step them alike; no server half learns, so it has no options.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        kwargs: options of the clients' side of `SplitMethod`.
    """

    server_copies = True
    whole_on_client = True

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
        self.step_clients([self.client_turn(batch) for batch in batches])


class WholeMethod(WholeClients):
    """The round of FedAvg; a method says how a client steps, or what becomes of what clients hand in.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        kwargs: options of the clients' side of `SplitMethod`.
    """

    whole_loss = ""
