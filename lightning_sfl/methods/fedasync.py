"""FedAsync: asynchronous federated averaging; whatever a client hands in is mixed into the server's weights at once.

C. Xie, O. Koyejo, I. Gupta, "Asynchronous Federated Optimization", OPT 2020 (arXiv 1903.03934), Algorithm 1, without
the proximal term of its clients (rho = 0).

    each client k, whenever it is free:  v_k <- the version of w;  y_k <- w;  local SGD;  hands in y_k
    server, at once:  t_k = version now - v_k;  a = alpha s(t_k);  w <- (1 - a) w + a y_k
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_sfl.core.errors import require
from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.state import state_of
from lightning_sfl.methods.asynchronous_whole import AsynchronousWhole


class FedAsync(AsynchronousWhole):
    """A round is so many merges as there are slots, unless `arrivals` says otherwise, so that rounds are comparable.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        mixing: alpha, how much of a fresh client's weights is taken.
        arrivals: networks handed in, and mixed in, that make a round; null for as many as there are slots.
        kwargs: options of the clients' side of `AsynchronousMethod`.
    """

    name = "fedasync"
    why_only_averaged = "what clients hand in is mixed in one by one"

    def __init__(
        self, backbone: nn.Module, cut_layer: str, *, mixing: float = 0.6, arrivals: int | None = None, **kwargs: Any
    ) -> None:
        require(0 < mixing <= 1, "mixing", mixing, "above 0, at most 1")
        require(arrivals is None or arrivals >= 1, "arrivals", arrivals, "an integer >= 1, or null")
        alone = arrivals is None or kwargs.get("participation", "replaced") == "replaced"
        require(alone, "arrivals", arrivals, "null where participation is per_round: a round is all of its clients")
        super().__init__(backbone, cut_layer, model_buffer=arrivals, weighting="uniform", **kwargs)
        self.mixing = mixing

    def take_in(self, slot: int, weight: float) -> None:
        super().take_in(slot, weight)
        came = self.handed_in[-1]
        share = self.mixing * self.staleness.factor(came.missed)
        states = [came.state, state_of(self.merged_halves())]
        self.put_together(states, [share, 1 - share], [came.client, came.client])
        self.count_merge()

    def departures(self) -> dict[str, str]:
        part = f"of what a client hands in, {self.mixing:g} is taken"
        return {} if self.mixing == 1 else dict.fromkeys(("one_step", "one_client"), part)

    def merge(self, plan: Plan) -> None:
        """Everything has been merged as it came."""
        self.handed_in.clear()
