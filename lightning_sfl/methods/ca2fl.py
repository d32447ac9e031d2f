"""CA2FL: FedBuff whose server remembers every client's latest update, and so knows what those who are away would add.

Y. Wang, Y. Cao, J. Wu, R. Chen, J. Chen, "Tackling the Data Heterogeneity in Asynchronous Federated Learning with
Cached Update Calibration", ICLR 2024, Algorithm 1; `cached_sum` is that of the released code of GAS (AAAI 2025).

    each client k, whenever it is free:  v_k <- the version of w;  y_k <- w;  local SGD;  hands in D_k = y_k - w(v_k)
    buffer S full:  v <- h + mean over S of (D_k - h_k);  h_k <- D_k for k in S;  h <- mean of all h_k, 0 at first
                    cached_sum:  h_k <- D_k for k in S;  v <- h <- sum of p_k h_k, p_k = the client's share of all rows
                    w <- w + v;  the round is over
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from lightning_sfl.core.aggregation import normalised
from lightning_sfl.core.cached_updates import CachedUpdates
from lightning_sfl.core.errors import require
from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.staleness import HandedIn
from lightning_sfl.core.state import State, buffers_of, state_of
from lightning_sfl.methods.buffered import BufferedUpdates


class CA2FL(BufferedUpdates):
    """A round is one merge; clients go on from round to round. The paper's server rate is that of `merge_optimizer`.

    All clients are those with rows: others never hand in. Of a client that is in the buffer twice both updates are
    calibrated by what was cached before, and the one that came later is cached. What `max_staleness` drops is not
    cached either. Batch-norm statistics are those of the buffer alone. The paper has no `staleness` factors, and there
    are none: cached updates are older than any in the buffer, and count in full. Nor does `privacy` go with it.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        calibration: the paper's, where the mean over the buffer is corrected by the cached mean over all clients; or
            the released code's, where the step is the cached sum itself, so clients that were never seen shorten it.
        weighting: how clients count, those who are away, too; null for that of the calibration: uniform in the paper,
            samples in the released code.
        kwargs: options of the clients' side of `AsynchronousMethod`.
    """

    name = "ca2fl"
    why_only_averaged = "the server keeps updates, and merges them again with those of others"
    why_not_moved = ""

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        *,
        calibration: Literal["mean", "cached_sum"] = "mean",
        weighting: Literal["uniform", "samples"] | None = None,
        **kwargs: Any,
    ) -> None:
        ways = {"mean": "uniform", "cached_sum": "samples"}
        require(calibration in ways, "calibration", calibration, f"one of {tuple(ways)}")
        known = weighting in (None, *ways.values())
        require(known, "weighting", weighting, "uniform or samples in CA2FL, where who is away counts too, or null")
        super().__init__(backbone, cut_layer, weighting=weighting or ways[calibration], staleness=None, **kwargs)
        self.calibration = calibration
        self.cached: CachedUpdates | None = None

    def prepare(self, data: Any, stage: str) -> None:
        super().prepare(data, stage)
        if stage == "fit" and self.cached is None:
            clients = [int(client) for client in self.available]
            shares = normalised([self.weight_of(client, 0) for client in clients])
            self.cached = CachedUpdates(dict(zip(clients, shares, strict=True)))

    def merge(self, plan: Plan) -> None:
        latest = {came.client: self.update_in(came) for came in self.handed_in}  # in the order in which they came
        if self.calibration == "cached_sum":
            self.cached.take(latest)
        super().merge(plan)
        if self.calibration == "mean":
            self.cached.take(latest)

    def update_in(self, came: HandedIn) -> State:
        """D_k, by the names of parameters."""
        start, as_they_are = self.start_of_visit(came), buffers_of(self.merged_halves())
        return {name: tensor - start[name] for name, tensor in came.state.items() if name not in as_they_are}

    def to_be_merged(self) -> tuple[list[State], list[float]]:
        calibrated = self.after_all if self.calibration == "cached_sum" else self.after_this
        return [calibrated(came) for came in self.handed_in], [came.weight for came in self.handed_in]

    @torch.no_grad()
    def after_this(self, came: HandedIn) -> State:
        """w + D_k - h_k + h, the mean of which over the buffer is w + v."""
        moved = self.moved_to_now(came)
        return {**moved, **{name: moved[name] + more for name, more in self.cached.beyond(came.client).items()}}

    @torch.no_grad()
    def after_all(self, came: HandedIn) -> State:
        """w + h for everybody, with the client's own batch-norm statistics."""
        now = state_of(self.merged_halves())
        return {**came.state, **{name: now[name] + h for name, h in self.cached.mean.items()}}

    # --- what lasts -------------------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Any]:
        return {**super().memory(), **({} if self.cached is None else {"cached": self.cached.state()})}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        self.cached.mean = self.brought_home(memory["cached"]["mean"])
        self.cached.kept = {client: self.brought_home(update) for client, update in memory["cached"]["kept"].items()}
