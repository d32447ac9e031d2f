"""FedBuff: asynchronous federated averaging; the server gathers updates in a buffer and takes a step when it is full.

J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba, "Federated Learning with Buffered
Asynchronous Aggregation", AISTATS 2022, Algorithm 1.

    each client k, whenever it is free:  v_k <- the version of w;  y_k <- w;  local SGD;  hands in D_k = y_k - w(v_k)
    buffer full:  t_k = version now - v_k;  w <- w + mean_k s(t_k) D_k;  the round is over
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.staleness import HandedIn
from lightning_sfl.core.state import State, buffers_of, state_of
from lightning_sfl.methods.asynchronous_whole import AsynchronousWhole


class FedBuff(AsynchronousWhole):
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
        self.versions: dict[int, State] = {}

    def load_slot(self, slot: int) -> None:
        """Keep the weights of this version, as long as somebody trains on from them."""
        super().load_slot(slot)
        if self.visits.merges not in self.versions:
            now = state_of(self.merged_halves())
            self.versions[self.visits.merges] = {name: tensor.clone() for name, tensor in now.items()}

    def merge(self, plan: Plan) -> None:
        self.handed_in.sort(key=lambda each: each.slot)  # so that sums do not depend on who came first
        factors = [self.staleness.factor(each.missed) for each in self.handed_in]
        scales = [1.0] * len(factors) if self.normalise else factors
        weights = [each.weight * (f if self.normalise else 1) for each, f in zip(self.handed_in, factors, strict=True)]
        states = [self.moved_to_now(*each) for each in zip(self.handed_in, scales, strict=True)]
        self.put_together(states, weights, [each.client for each in self.handed_in])
        self.handed_in.clear()
        self.count_merge()
        self.versions = {v.version: self.versions[v.version] for v in self.visits.in_slot.values()}

    @torch.no_grad()
    def moved_to_now(self, came: HandedIn, scale: float) -> State:
        """The weights of this version plus the client's update, scaled; a fresh one is what it handed in, exactly."""
        if not came.missed and scale == 1:
            return came.state
        start, halves = self.versions[self.visits.merges - came.missed], self.merged_halves()
        now, as_they_are = state_of(halves), buffers_of(halves)
        return {
            name: tensor if name in as_they_are else now[name] + scale * (tensor - start[name])
            for name, tensor in came.state.items()
        }

    def memory(self) -> dict[str, Any]:
        return {**super().memory(), "versions": self.versions}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        self.versions = {
            version: {name: tensor.to(self.device) for name, tensor in state.items()}
            for version, state in memory["versions"].items()
        }
