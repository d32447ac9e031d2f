"""SFLProx: SFL in which neither half gets far from where it was when the round began.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated Optimization in Heterogeneous Networks"
(FedProx), MLSys 2020, Algorithm 2: everybody minimises its loss + mu/2 ||theta - theta_0||^2, theta_0 as it started.

    for each sweep t:  every client i that has a t-th batch uploads it
                       for each upload in turn: server step on its mean loss, gradient + mu (theta_s - theta_s0)
                       client i: step with the gradient that came back + mu (theta_i - theta_i0)
    client half <- weighted average;  server half: as trained

With one server half, as here, the term on it bounds how far all clients' uploads together move it within a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.core.errors import require
from lightning_sfl.core.proximal import proximal_pull
from lightning_sfl.core.rounds import Batch, Plan
from lightning_sfl.methods.base import SplitMethod
from lightning_sfl.methods.module import Role


class SFLProx(SplitMethod):
    """SFL with the proximal term of FedProx; losses are recorded without it, bounds on gradients hold with it.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        prox_mu: mu; 0 is SFL. FedProx's paper tries 0.001, 0.01, 0.1 and 1.
        prox_server: have the term on the server half, too, and not on the clients' alone.
        kwargs: options of `SplitMethod`.
    """

    name = "sfl_prox"

    def __init__(
        self, backbone: nn.Module, cut_layer: str, *, prox_mu: float = 0.01, prox_server: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        require(0 <= prox_mu < float("inf"), "prox_mu", prox_mu, "a finite number >= 0")
        self.prox_mu, self.prox_server = prox_mu, prox_server
        self.anchors: dict[nn.Module, list[Tensor]] = {}

    def train_round(self, plan: Plan) -> None:
        self.anchors = {}
        if self.prox_server:
            self.drop_anchor(self.server_half)
        super().train_round(plan)
        self.anchors = {}

    def start_client(self, batch: Batch) -> None:
        super().start_client(batch)
        if self.link.holds(batch.slot):
            self.drop_anchor(self.slots[batch.slot])

    def drop_anchor(self, half: nn.Module) -> None:
        """Note where a half begins the round."""
        self.anchors[half] = [parameter.detach().clone() for parameter in self.parameters_of[half]]

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        return [reply for upload in uploads for reply in self.train_server([[upload]])]

    def guard_step(self, owned: Any, clients: Sequence[int], side: Role, cut_gradients: Sequence[Tensor] = ()) -> None:
        for half in chain.from_iterable(owned):
            if half in self.anchors:
                proximal_pull(self.parameters_of[half], self.anchors[half], self.prox_mu)
        super().guard_step(owned, clients, side, cut_gradients)

    def departures(self) -> dict[str, str]:
        """Only the first step of a round is that of the loss alone."""
        drawn = "from the second step on halves are drawn to where the round began"
        return {"one_client": drawn} if self.prox_mu else {}
