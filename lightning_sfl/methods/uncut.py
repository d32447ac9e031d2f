"""Steps without a cut: for methods whose clients train both halves, end to end."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sfl.core.rounds import Batch
from lightning_sfl.methods.sides import Sides


class UncutSteps(Sides):
    """What the loop does instead of upload, serve and download where nothing crosses."""

    def backward_uncut(self, batches: Sequence[Batch]) -> None:
        """Each batch through both halves of its slot, end to end: gradients of its mean loss, nothing crosses."""
        self.begin(batches)
        losses = []
        for batch in batches:
            if not self.link.holds(batch.slot):
                self.tally.skip()
                continue
            x, labels = self.take_turn(batch)
            smashed = self.forward_client(batch, x)
            self.draw_from("server", batch)
            logits = self.server_of(batch.slot)(smashed)
            losses.append(self.observed_loss(logits, labels, [batch.client_id], "client"))
        for parameters in self.parameters_of.values():
            self.forget_gradients(parameters)
        if losses:
            self.walk_back(losses)
