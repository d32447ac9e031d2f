"""Per-FedAvg: clients look for weights from which one step on their own rows leads far, which are then averaged.

A. Fallah, A. Mokhtari, A. Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach", NeurIPS 2020, Algorithm 1, with the two approximations of its section 5.

    each client k:  w_k <- w;  each local step, with the two halves D, D' of a batch:
        v <- w_k - a grad f(w_k; D);  g <- grad f(v; D')
        hf:  g <- g - a (grad f(w_k + d g; D) - grad f(w_k - d g; D)) / 2d
        w_k <- step of the client optimizer with g
    w <- sum_k (n_k / n) w_k
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sfl.core.clock import Costs
from lightning_sfl.core.errors import require
from lightning_sfl.core.rounds import Batch
from lightning_sfl.core.state import untouched_buffers
from lightning_sfl.methods.whole import WholeMethod

Turn = tuple[Tensor, Tensor]  # inputs, labels
DELTA = 1e-3


class PerFedAvg(WholeMethod):
    """FedAvg whose clients learn from the loss that they have after one step of adaptation.

    What the records say of training is of the adapted networks v, on D'. Batch-norm statistics follow the passes on D'
    alone, and a batch of one row has no D: no adaptation goes before its step.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        adapt_lr: a, the rate of the step of adaptation; at 0 this is FedAvg on the second half of each batch.
        variant: `fo` leaves the second derivatives out; `hf` takes their product with g as a difference of gradients
            on D, where the paper draws further rows: so g is, for a small `delta`, the gradient of the adapted loss.
        delta: d, how far from w_k, in multiples of g, `hf` looks at gradients; null for 0.001, and in `fo`.
        kwargs: options of the clients' side of `SplitMethod`.
    """

    name = "per_fedavg"
    why_not_by_rows = "the step of adaptation before each step has gradients of its own"

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        *,
        adapt_lr: float = 0.01,
        variant: Literal["fo", "hf"] = "fo",
        delta: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        require(0 <= adapt_lr < float("inf"), "adapt_lr", adapt_lr, "a finite number >= 0")
        require(variant in ("fo", "hf"), "variant", variant, "fo or hf")
        require(delta is None or variant == "hf", "delta", delta, "null in variant fo, which takes no differences")
        require(delta is None or 0 < delta < float("inf"), "delta", delta, "a finite number > 0, or null")
        size = self.work.batch_size
        require(size is None or size >= 2, "batch_size", size, "an integer >= 2, or null: batches are cut in two")
        self.adapt_lr, self.variant, self.delta = adapt_lr, variant, delta or DELTA

    def costs(self, row: Tensor) -> Costs:
        """Of a row: a pass over it, in either half of a batch; `hf` makes three over D, so two on average."""
        found = super().costs(row)
        return replace(found, flops=2 * found.flops) if self.variant == "hf" else found

    def departures(self) -> dict[str, str]:
        half = "the step is taken with the gradient on half of a batch, after a step of adaptation on the other"
        return dict.fromkeys(("one_step", "one_client"), half)

    def local_step(self, batches: Sequence[Batch]) -> None:
        self.begin(batches)
        held = [batch for batch in batches if self.link.holds(batch.slot)]
        turns = [self.take_turn(batch) for batch in held]
        first = [(x[: len(x) // 2], y[: len(x) // 2]) for x, y in turns]
        second = [(x[len(x) // 2 :], y[len(x) // 2 :]) for x, y in turns]
        trained = [p for batch in held for p in self.parameters_in(batch.slot) if p.requires_grad]
        with moved(trained, self.gradients(held, first, trained), -self.adapt_lr):
            self.backward_turns(batches, second)
        if self.variant == "hf":
            self.add_curvature(held, first, trained)
        self.step_clients([self.client_turn(batch) for batch in batches])

    def add_curvature(self, held: Sequence[Batch], first: Sequence[Turn], trained: Sequence[nn.Parameter]) -> None:
        """Take a times the Hessian's product with the gradients from these."""
        along, ends = [p.grad for p in trained], []
        for delta in (self.delta, -self.delta):
            with moved(trained, along, delta):
                ends.append(self.gradients(held, first, trained))
        for parameter, gradient, ahead, behind in zip(trained, along, *ends, strict=True):
            parameter.grad = gradient
            if gradient is not None and ahead is not None and behind is not None:
                parameter.grad = gradient - self.adapt_lr / (2 * self.delta) * (ahead - behind)

    def gradients(
        self, held: Sequence[Batch], turns: Sequence[Turn], trained: Sequence[nn.Parameter]
    ) -> list[Tensor | None]:
        """Of the mean losses of these rows, where the slots stand; they stay in `.grad`, and nobody is told."""
        some = [(batch, turn) for batch, turn in zip(held, turns, strict=True) if len(turn[0])]
        if not some:
            return [None] * len(trained)
        batches = [batch for batch, _ in some]
        with untouched_buffers(nn.ModuleList(half for batch in batches for half in self.owned(batch.slot))):
            outputs = self.run_uncut(batches, [x for _, (x, _) in some])
            losses = [self.loss(found, y.to(found.device)) for found, (_, (_, y)) in zip(outputs, some, strict=True)]
            self.forget_gradients(trained)
            torch.autograd.backward(losses)  # and not autograd.grad: stacked copies hand gradients out as they come
            return [parameter.grad for parameter in trained]


@contextmanager
def moved(trained: Sequence[nn.Parameter], along: Sequence[Tensor | None], by: float) -> Iterator[None]:
    """Parameters plus so many times these directions, where there are any; then they are what they were, to the bit."""
    start = [p.detach().clone() for p in trained]
    try:
        with torch.no_grad():
            for parameter, direction in zip(trained, along, strict=True):
                if direction is not None:
                    parameter.add_(direction, alpha=by)
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(trained, start, strict=True):
                parameter.copy_(old)
