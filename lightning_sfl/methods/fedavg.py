"""FedAvg: every client trains the whole network on its own data, and the networks are averaged.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, Algorithm 1.

    each client k:  w_k <- w;  E epochs of mini-batch SGD on its own rows
    w <- sum_k (n_k / n) w_k
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_sfl.core.rounds import Batch
from lightning_sfl.methods.base import SplitMethod


class FedAvg(SplitMethod):
    """Clients hold both halves; the cut layer only says where diagnostics divide the network.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        kwargs: options of the clients' side of `SplitMethod`.
    """

    name = "fedavg"
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
