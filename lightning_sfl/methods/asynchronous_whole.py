"""Asynchronous methods without a cut: clients that do not wait for each other train the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_sfl.core.rounds import Batch
from lightning_sfl.methods.asynchronous import AsynchronousMethod


class AsynchronousWhole(AsynchronousMethod):
    """Clients of FedAvg on the simulated clock; a method says what becomes of the networks that they hand in.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        kwargs: options of the clients' side of `AsynchronousMethod`.
    """

    server_copies = True
    whole_on_client = True
    whole_loss = "its clients come one by one, on one clock"

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

    def take_turn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of clients that start together the rows are gathered as FedAvg's: kernels round by where rows lie."""
        return self.feed.take(batch) if self.participation == "per_round" else super().take_turn(batch)

    def local_step(self, batches: Sequence[Batch]) -> None:
        self.backward_uncut(batches)
        self.step_clients(batches)
