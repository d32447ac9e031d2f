"""Gradient divergence: how far the participants' gradients, all taken at the state the round starts from, lie apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.callbacks.rows import Layers
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.errors import require
from lightning_sfl.core.events import ClientEnd, RoundStart
from lightning_sfl.core.gradients import ROWS_AT_ONCE, BnMode, mean_gradient, trained_parameters, untouched
from lightning_sfl.core.randomness import stream
from lightning_sfl.measures.divergence import divergence, split_half
from lightning_sfl.measures.gram import Weights, gram, weights_of
from lightning_sfl.records.report import RoundReport


class GradientDivergence(Watcher):
    """Writes `gdiv/{client,server,full}_{mean,rms,rel,percoord,splithalf}`; `splithalf` estimates rms squared without
    the noise of the rows drawn, and may be negative.

    Costs a forward and a backward pass over the participants' data in each measured round, without dropout.

    Args:
        every: measure in every so many rounds, 0 for never.
        max_rows: look at so many rows of each participant only, drawn anew; null for all.
        weights: how much each client counts: by the rows looked at, as the aggregator has it, or all alike.
        bn_mode: batch normalisation uses its running statistics, or those of each half of a client's rows.
        layers: `layer/<name>/gdiv_{mean,rms,rel,percoord,splithalf}` too, of each layer's part of the gradients.
    """

    def __init__(
        self,
        every: int = 10,
        max_rows: int | None = None,
        weights: Weights = "samples",
        bn_mode: BnMode = "running",
        layers: bool = False,
    ) -> None:
        super().__init__(every)
        require(max_rows is None or max_rows >= 2, "max_rows", max_rows, "an integer >= 2, or null")
        self.max_rows = max_rows
        self.weights: Weights = weights
        self.bn_mode: BnMode = bn_mode
        self.by_layer = layers
        self._forget()

    def attends(self, round: int) -> bool:
        """Only rounds that are measured."""
        return self.due(round)

    def _forget(self) -> None:
        self.shares: dict[int, list[int]] = {}
        self.aggregation: dict[int, float] = {}
        self.grams: dict[str, Tensor] = {}
        self.sizes: dict[str, int] = {}
        self.layer_grams: dict[str, tuple[Tensor, int]] = {}

    def reads_tensors(self, round: int) -> bool:
        """Only those of the round's start, which are everywhere."""
        return False

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Gradients of both halves of every participant's rows, reduced to Gram matrices."""
        self._forget()
        if not self.due(event.round):
            return
        with untouched((event.client_half, event.server_half), self.bn_mode, module.population.x.device):
            self._measure(module, event)

    def _measure(self, module: Any, event: RoundStart) -> None:
        both = (event.client_half, event.server_half)
        client, server = map(trained_parameters, both)
        rows: dict[str, list[list[Tensor]]] = {"client": [], "server": []}
        for participant in dict.fromkeys(event.participants):
            halves = self._halves(module, event.round, participant)
            if not halves:
                continue
            self.shares[participant] = [len(half) for half in halves]
            for half in halves:  # batch statistics need all rows at once
                at_once = len(half) if self.bn_mode == "batch" else ROWS_AT_ONCE
                gradient = mean_gradient(module.loss, both, module.population, half, [*client, *server], at_once)
                rows["client"].append(gradient[: len(client)])
                rows["server"].append(gradient[len(client) :])
        self.sizes = {"client": sum(p.numel() for p in client), "server": sum(p.numel() for p in server)}
        self.grams = {half: gram(gradients) for half, gradients in rows.items() if gradients}
        for module_half, gradients in zip(both, rows.values(), strict=True) if self.by_layer and self.grams else ():
            layers = Layers(module_half)
            for name in layers.places:
                self.layer_grams[name] = (gram([layers.of(name, own) for own in gradients]), layers.size(name))

    def _halves(self, module: Any, round: int, participant: int) -> list[np.ndarray]:
        own = module.population.rows[participant]
        order = stream(module.seed, "gradient_divergence", round, participant).permutation(len(own))[: self.max_rows]
        return [own[np.sort(half)] for half in np.array_split(order, 2) if len(half)]

    def on_client_end(self, module: Any, event: ClientEnd) -> None:
        """Note the aggregator's weight."""
        if self.shares and event.finished:
            self.aggregation[event.client_id] = event.weight

    def report(self, module: Any, report: RoundReport) -> None:
        """The five scalars of each block, and each client's divergence in the client half."""
        if not self.grams:
            return
        blocks = {half: products.cpu() for half, products in self.grams.items()}
        blocks["full"] = blocks["client"] + blocks["server"]
        sizes = {**self.sizes, "full": sum(self.sizes.values())}
        report.schemes.add(self.weights)
        for block, products in blocks.items():
            if sizes[block]:
                self._report_block(f"gdiv/{block}", products, sizes[block], report)
        for layer, (products, size) in self.layer_grams.items():
            self._report_block(f"layer/{layer}/gdiv", products.cpu(), size, report)
        self._forget()

    def _report_block(self, block: str, products: Tensor, size: int, report: RoundReport) -> None:
        clients = [c for c in self.shares if self.weights != "aggregation" or c in self.aggregation]
        if not clients:
            return
        weights = weights_of(
            self.weights, [sum(self.shares[c]) for c in clients], [self.aggregation.get(c, 0.0) for c in clients]
        )
        joined, first, second = self._selectors(clients)
        found = divergence(joined @ products @ joined.T, weights, size)
        for name in ("mean", "rms", "rel", "percoord"):
            report.scalar(f"{block}_{name}", getattr(found, name))
        both = [i for i, client in enumerate(clients) if len(self.shares[client]) == 2]
        halves = (first @ products @ second.T)[both][:, both]
        report.scalar(f"{block}_splithalf", split_half(halves, weights[both] / weights[both].sum()))
        if block == "gdiv/client":
            values = found.per_client.tolist()
            report.clients("gdiv", {str(c): value for c, value in zip(clients, values, strict=True)})
            report.vector("gdiv/client", values)

    def _selectors(self, clients: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices that turn the half-batch gradients into each client's mean, its first and its second half."""
        joined = torch.zeros(len(clients), sum(map(len, self.shares.values())), dtype=torch.float64)
        first, second = joined.clone(), joined.clone()
        places = dict(zip(self.shares, np.cumsum([0, *map(len, self.shares.values())]).tolist(), strict=False))
        for i, client in enumerate(clients):
            share, place = self.shares[client], places[client]
            for offset, rows in enumerate(share):
                joined[i, place + offset] = rows / sum(share)
            first[i, place] = second[i, place + len(share) - 1] = 1
        return joined, first, second
