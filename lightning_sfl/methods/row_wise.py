"""Local training in which no single row has much of a say: `sample_dp`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_sfl.core.cut import Reply, Upload, parts
from lightning_sfl.core.errors import require
from lightning_sfl.core.privacy.sample import SampleAccounts, SampleDP, check_account
from lightning_sfl.core.rounds import Batch
from lightning_sfl.methods.guarded import Guarded


class RowWise(Guarded):
    """Takes a client's gradient row by row, where that is asked for.

    why_not_by_rows: what to answer where that has no meaning.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        sample_dp: DP-SGD in local training: on the client half, or on both halves where nothing crosses a cut; null
            for plain gradients. As slow as batches of one row.
        kwargs: options of `SplitModule`.
    """

    why_not_by_rows: ClassVar[str] = ""

    def __init__(
        self, backbone: nn.Module, cut_layer: str, *, sample_dp: SampleDP | None = None, **kwargs: Any
    ) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        self.sample_dp = sample_dp and sample_dp.checked()
        self.sample_accounts = SampleAccounts()
        given, why = sample_dp is not None, self.why_not_by_rows
        require(not (given and why), "sample_dp", "given", f"null in {type(self).__name__}, as {why}")

    def prepare(self, data: Any, stage: str) -> None:
        """Cut the network, and see that its rows can be told apart."""
        super().prepare(data, stage)
        if self.sample_dp is not None and stage == "fit":
            halves = [self.client_half] if self.answers_uploads else [self.client_half, self.server_half]
            joined = any(isinstance(layer, _BatchNorm) for half in halves for layer in half.modules())
            require(not joined, "sample_dp", "given", "null with BatchNorm, which joins the rows of a batch")
            require(not self.stacked, "client_engine", "stacked", "loop with sample_dp, which goes row by row")
            self.sample_accounts = SampleAccounts()
            if not self.why_rows_unaccounted:
                check_account(self.sample_dp)

    @property
    def why_rows_unaccounted(self) -> str:
        """What besides these gradients learns from the rows; empty where nothing does."""
        return "the server half learns from smashed data without noise" if self.answers_uploads else self.why_learning

    # --- gradients --------------------------------------------------------------------------------------------------

    def descend_cut(self, answers: Sequence[Reply]) -> None:
        """Gradients of the client halves of these answers, row by row through the cut."""
        for answer in answers:
            upload = answer.upload
            if self.link.holds(upload.slot):
                roots = [part for part in parts(upload.smashed) if part.requires_grad]
                sent = [g for g, part in zip(answer.sent, parts(upload.smashed), strict=True) if part.requires_grad]
                rows = [(roots, [only(gradient, j) for gradient in sent]) for j in range(upload.num_rows)]
                self.descend(upload, [self.slots[upload.slot]], rows if roots else [], float(upload.num_rows))
            self.spend(upload)

    def descend_uncut(self, batches: Sequence[Batch], outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """Gradients of both halves in the slots of these batches, row by row; outputs and labels of those held here."""
        found = iter(zip(outputs, labels, strict=True))
        for batch in batches:
            if self.link.holds(batch.slot):
                logits, own = next(found)
                rows = zip(logits.split(1), own.to(logits.device).split(1), strict=True)
                losses = [self.loss(*row) for row in rows]
                halves = [self.slots[batch.slot], self.server_of(batch.slot)]
                self.descend(batch, halves, [([loss], None) for loss in losses], 1.0)
            self.spend(batch)

    def descend(self, turn: Batch | Upload, modules: Sequence[nn.Module], rows: Sequence[Any], factor: float) -> None:
        """Bounded and noised gradients of one client's step."""
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        key = (self.seed, f"sample_dp|{turn.slot}", self.current_epoch, turn.client_id, turn.local_step)
        if trained:
            self.sample_dp.descend(rows, trained, factor, turn.num_rows, key)

    # --- the account ------------------------------------------------------------------------------------------------

    def spend(self, turn: Batch | Upload) -> None:
        """Note one step of a client."""
        held = sum(self.population.sizes) if self.one_process else len(self.population.rows[turn.client_id])
        rate = min(1.0, turn.num_rows / held)
        self.sample_accounts.add(turn.client_id, self.sample_dp.noise_multiplier, rate)

    def privacy_scalars(self) -> dict[str, float]:
        told = super().privacy_scalars()
        if self.sample_dp is not None and self.sample_dp.accountable and not self.why_rows_unaccounted:
            told["privacy/sample_epsilon"] = self.sample_accounts.worst(self.sample_dp.delta)
        return told

    def said_of_privacy(self) -> list[str]:
        if self.sample_dp is None:
            return super().said_of_privacy()
        dp, why = self.sample_dp, self.why_rows_unaccounted
        why = why or ("" if dp.accountable else "there is no noise, or no delta is given")
        where = "the client half" if self.answers_uploads else "both halves"
        spent = f"no epsilon, as {why}" if why else f"epsilon at delta {dp.delta:g} for the rows of the worst client"
        noise = f"rows clipped to {dp.clip:g}, noise multiplier {dp.noise_multiplier:g} on {where}"
        return [*super().said_of_privacy(), f"local training: {noise}; {spent}"]

    def memory(self) -> dict[str, Any]:
        kept = {} if self.sample_dp is None else {"sample_accounts": self.sample_accounts.state()}
        return {**super().memory(), **kept}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        self.sample_accounts.load(memory.get("sample_accounts", {}))


def only(gradient: Tensor, row: int) -> Tensor:
    """The gradient with all rows but this one at 0."""
    alone = torch.zeros_like(gradient)
    alone[row] = gradient[row]
    return alone
