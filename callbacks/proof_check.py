"""Proof of gradient projection: an auditor who may see the clients' rows computes some of their scalars again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.events import RoundStart, ScalarsSent
from lightning_sfl.core.holograd.projection import chain_loss, project_loss
from lightning_sfl.core.holograd.verification import Check, Verifier
from lightning_sfl.core.randomness import untouched_generators
from lightning_sfl.records.report import RoundReport


class ProofCheck(Watcher):
    """Writes `verify/*` of the round and each client's `proofs_checked` and `proofs_rejected`; it excludes nobody.

    Only methods that send scalars (HoloGrad) have proofs. A client none of whose scalars is chosen costs nothing, any
    other one backward pass over its rows.

    Args:
        every: check in every so many rounds, 0 for never.
        probability: chance that a scalar is checked.
        tolerance: largest accepted difference, in units of the rms of the auditor's own scalars.
        seed: of the auditor's choices, which do not depend on what was sent.
    """

    def __init__(self, every: int = 1, probability: float = 0.05, tolerance: float = 1e-4, seed: int = 0) -> None:
        super().__init__(every)
        self.verifier = Verifier(probability, tolerance, seed)
        self.found: dict[str, Check] = {}

    def reads_tensors(self, round: int) -> bool:
        """Every process has the parameters that the scalars should be of: nothing has to be brought for the audit."""
        return False

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Forget the round before."""
        self.found = {}

    def on_scalars_sent(self, module: Any, event: ScalarsSent) -> None:
        """Choose, compute again, compare."""
        if not self.due(event.round):
            return
        client, count = event.batch.client_id, len(event.scalars)
        chosen = self.verifier.chosen(event.round, client, count)
        check = Check(0, 0, 0.0)
        if len(chosen):
            probes = torch.from_numpy(self.verifier.probes(chosen, count)).to(event.scalars.device)
            check = self.verifier.compare(event.scalars[probes], own_scalars(module, event)[probes], len(chosen))
        self.found[str(client)] = check

    def report(self, module: Any, report: RoundReport) -> None:
        """Totals, and the ledger of each client."""
        if self.found:
            checks = list(self.found.values())
            report.scalar("verify/checked", sum(check.checked for check in checks))
            report.scalar("verify/rejected", sum(check.rejected for check in checks))
            report.scalar("verify/max_rel_err", max(check.largest for check in checks))
            report.clients("proofs_checked", {client: check.checked for client, check in self.found.items()})
            report.clients("proofs_rejected", {client: check.rejected for client, check in self.found.items()})


def own_scalars(module: Any, event: ScalarsSent) -> Tensor:
    """What an honest client would have sent: same rows, same parameters, same draws of dropout."""
    x, labels = module.population.take(event.batch.rows)
    halves = (event.client_half, event.server_half)

    def draw(half: int) -> None:
        module.draw_from("server" if half else "client", event.batch)

    def loss(logits: Tensor) -> Tensor:
        found: Tensor = module.loss(logits, labels)
        return found

    parameters = [p for half in halves for p in half.parameters() if p.requires_grad]
    with untouched_generators(module.device):
        return project_loss(chain_loss(halves, x, loss, draw), parameters, event.directions, "grad")
