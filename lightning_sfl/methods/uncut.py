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
        held = [batch for batch in batches if self.link.holds(batch.slot)]
        turns = [self.take_turn(batch) for batch in held]
        smashed = [self.link.to_server(each) for each in self.forward_clients(held, [x for x, _ in turns])]
        outputs = self.forward_privates(held, smashed)
        answered = iter(zip(outputs, turns, strict=True))
        losses = []
        for batch in batches:
            if self.link.holds(batch.slot):
                logits, (_, labels) = next(answered)
                losses.append(self.observed_loss(logits, labels.to(logits.device), [batch.client_id], "client"))
            else:
                self.tally.skip()
        for parameters in self.parameters_of.values():
            self.forget_gradients(parameters)
        if self.sample_dp is not None:
            self.descend_uncut(batches, outputs, [labels for _, labels in turns])
        elif losses:
            self.walk_back(losses)
