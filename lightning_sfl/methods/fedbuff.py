"""FedBuff: asynchronous federated averaging; the server gathers updates in a buffer and takes a step when it is full.

J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba, "Federated Learning with Buffered
Asynchronous Aggregation", AISTATS 2022, Algorithm 1.

    each client k, whenever it is free:  v_k <- the version of w;  y_k <- w;  local SGD;  hands in D_k = y_k - w(v_k)
    buffer full:  t_k = version now - v_k;  w <- w + mean_k s(t_k) D_k;  the round is over
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_sfl.core.state import State
from lightning_sfl.methods.buffered import BufferedUpdates


class FedBuff(BufferedUpdates):
    """A round is one merge; clients go on from round to round. The paper's server rate is that of `merge_optimizer`.

    What the aggregator is given are the clients' updates, scaled, on top of the weights as they are now; batch-norm
    statistics, which are no updates, as they were handed in.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        normalise: divide by the sum of the staleness factors, as a weighted mean does, instead of by the number of
            updates; so a buffer of stale updates is as long a step as one of fresh ones.
        kwargs: options of the clients' side of `AsynchronousMethod`.
    """

    name = "fedbuff"

    def __init__(self, backbone: nn.Module, cut_layer: str, *, normalise: bool = False, **kwargs: Any) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        self.normalise = normalise

    def to_be_merged(self) -> tuple[list[State], list[float]]:
        factors = [self.staleness.factor(each.missed) for each in self.handed_in]
        scales = [1.0] * len(factors) if self.normalise else factors
        weights = [each.weight * (f if self.normalise else 1) for each, f in zip(self.handed_in, factors, strict=True)]
        return [self.moved_to_now(*each) for each in zip(self.handed_in, scales, strict=True)], weights
