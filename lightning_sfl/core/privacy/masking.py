"""Gradient masking: a client sends some of the numbers of its update, and may keep the others for later.

N. Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing", Interspeech 2015, and S. Stich,
J.-B. Cordonnier, M. Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, for the largest numbers with error feedback. It
saves traffic. It is no protection: `train.py leaks` shows what is left to see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.privacy.base import Moment, Privacy

INDEX_BYTES = 4


class GradientMasking(Privacy):
    """Of the D numbers of an update, k = max(1, round(keep * D)) are sent, and the others count as 0.

    Args:
        keep: share of the numbers that are sent.
        choose: those of largest size, or any, by a seed that client and server have in common, so that no places
            need to be sent; or `drop_topk`, all but the largest, which give most away.
        scale: multiply what is sent by D / k, so that its mean over the draws is the update; with `random` only.
        error_feedback: what was not sent is added to the client's next update, and kept in checkpoints; one vector
            for each client that has taken part. Without `scale`, and not with `drop_topk`.
    """

    unguarded = ""

    def __init__(
        self,
        keep: float = 0.1,
        choose: Literal["random", "topk", "drop_topk"] = "topk",
        scale: bool = False,
        error_feedback: bool = False,
    ) -> None:
        require(0 < keep <= 1, "privacy.keep", keep, "a share above 0 and at most 1")
        ways = ("random", "topk", "drop_topk")
        require(choose in ways, "privacy.choose", choose, f"one of {ways}")
        require(not scale or choose == "random", "privacy.scale", scale, "false unless choose is random")
        plain = not scale and choose != "drop_topk"
        why = "false with scale, which makes up for the rest at once, and with drop_topk, which is to hold it back"
        require(not error_feedback or plain, "privacy.error_feedback", error_feedback, why)
        self.keep, self.choose, self.scale, self.error_feedback = keep, choose, scale, error_feedback
        self.residuals: dict[int, Tensor] = {}

    def prepare(self, setting: Any) -> None:
        super().prepare(setting)
        self.residuals = {}

    def count(self, numbers: int) -> int:
        """Numbers that are sent of so many."""
        return max(1, round(self.keep * numbers))

    def places(self, update: Tensor, client: int, moment: Moment) -> Tensor:
        """Which numbers are sent."""
        count = self.count(len(update))
        if self.choose == "random":
            drawn = moment.draws("gradient_mask", client).permutation(len(update))[:count]
            return torch.from_numpy(drawn).to(update.device)
        order = torch.argsort(update.abs(), descending=self.choose == "topk", stable=True)
        return order[:count]

    def hide(self, update: Tensor, client: int, moment: Moment) -> Tensor:
        if self.error_feedback and client in self.residuals:
            update = update + self.residuals[client]
        if self.count(len(update)) == len(update):
            return update
        places = self.places(update, client, moment)
        sent = torch.zeros_like(update)
        sent[places] = update[places]
        if self.error_feedback:
            self.residuals[client] = update - sent
        return sent * (len(update) / len(places)) if self.scale else sent

    def upload_bytes(self, numbers: int, number_bytes: int, place: int, clients: Sequence[int], moment: Moment) -> int:
        count = self.count(numbers)
        plain = numbers * number_bytes
        sparse = count * (number_bytes + (INDEX_BYTES if self.choose != "random" else 0))
        return min(plain, sparse)

    def said(self) -> str:
        rest = ", the rest with a later one" if self.error_feedback else ""
        how = {"random": "any", "topk": "the largest", "drop_topk": "the smallest"}[self.choose]
        return f"GradientMasking: {how} {self.keep:.4g} of the numbers of an update are sent{rest}; no protection"

    def state(self) -> dict[str, Any]:
        return {"residuals": self.residuals} if self.error_feedback else {}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        self.residuals = {client: tensor.to(device) for client, tensor in state.get("residuals", {}).items()}
