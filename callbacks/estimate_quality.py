"""How good an estimate of the gradient the server steps with: against the clients' true gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.events import ClientEnd, RoundStart, ScalarsSent, ServerBackward
from lightning_sfl.core.holograd.projection import flat
from lightning_sfl.records.report import RoundReport


class EstimateQuality(Watcher):
    """Writes `holograd/*`: cosine and relative error of the estimate to the weighted mean of the true gradients, the
    share of that mean's squared norm inside the basis, and the rms of the scalars.

    Only HoloGrad has such an estimate, and only with projection=grad do its clients have the true gradients.

    Args:
        every: measure in every so many rounds, 0 for never.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__(every)
        self._forget()

    def _forget(self) -> None:
        self.sent: list[ScalarsSent] = []
        self.true: Tensor | None = None
        self.weight = 0.0
        self.found: dict[str, float] = {}

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Forget the round before."""
        self._forget()

    def on_scalars_sent(self, module: Any, event: ScalarsSent) -> None:
        """Note who projects, and along what."""
        if self.due(event.round) and module.projection == "grad":
            self.sent.append(event)

    @torch.no_grad()
    def on_client_end(self, module: Any, event: ClientEnd) -> None:
        """Add its true gradient, which still stands in its slot."""
        if self.sent and event.server_half is not None:
            own = gradient_of(event.client_half, event.server_half) * event.weight
            self.true = own if self.true is None else self.true + own
            self.weight += event.weight

    @torch.no_grad()
    def on_server_backward(self, module: Any, event: ServerBackward) -> None:
        """Compare what is about to be stepped with."""
        if self.true is not None:
            true, basis = self.true / self.weight, self.sent[0].directions.basis
            estimate = gradient_of(module.client_half, module.server_half)
            square = float(true @ true)
            self.found = {
                "cos_true": float(nn.functional.cosine_similarity(estimate, true, dim=0)),
                "error_rel": float((estimate - true).norm()) / square**0.5 if square else float("nan"),
                "captured": float((basis @ true).square().sum()) / square if square else float("nan"),
                "scalar_rms": float(torch.stack([sent.scalars for sent in self.sent]).square().mean().sqrt()),
            }
            self.true = None

    def report(self, module: Any, report: RoundReport) -> None:
        """What was found in this round."""
        for name, value in self.found.items():
            report.scalar(f"holograd/{name}", value)


def gradient_of(*halves: nn.Module) -> Tensor:
    """The gradients that stand in these halves as one vector."""
    parameters = [p for half in halves for p in half.parameters() if p.requires_grad]
    return flat([p.grad for p in parameters], parameters)
