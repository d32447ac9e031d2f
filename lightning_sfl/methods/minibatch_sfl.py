"""MiniBatch-SFL: the server takes one step on the clients' joined batches, the giant mini-batch.

C. Huang, G. Tian, M. Tang, "When MiniBatch SGD Meets SplitFed Learning: Convergence Analysis and Performance
Evaluation", arXiv 2308.11953 (2023), equation 3.

    for each step e:  every client i uploads a batch of B_i rows
                      server: one step on the mean loss over all sum B rows
                      client i gets the gradient of its own mean loss, at the server half before the step
    client half <- weighted average;  server half: as trained
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.core.errors import require
from lightning_sfl.methods.base import SplitMethod


class MiniBatchSFL(SplitMethod):
    """One server step per local step, however many clients take part.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        client_gradient_scale: `local_mean`, the gradient of the client's own mean loss (1/B_i, the paper), or
            `concat_mean`, its slice of the joint gradient as it is (1/sum B).
        kwargs: options of `SplitMethod`.
    """

    name = "minibatch_sfl"
    whole_loss = ""

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        client_gradient_scale: Literal["local_mean", "concat_mean"] = "local_mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        scales = ("local_mean", "concat_mean")
        require(client_gradient_scale in scales, "client_gradient_scale", client_gradient_scale, f"one of {scales}")
        self.client_gradient_scale = client_gradient_scale

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        answers = self.train_server([uploads])
        if self.client_gradient_scale == "concat_mean" or len(uploads) == 1:
            return answers
        joint_rows = sum(upload.num_rows for upload in uploads)
        return [own_mean(answer, joint_rows) for answer in answers]


def own_mean(answer: Reply, joint_rows: int) -> Reply:
    """A slice of the joint mean's gradient, rescaled to the mean over the client's own rows."""
    factor = joint_rows / answer.upload.num_rows
    return replace(answer, sent=tuple(part * factor for part in answer.raw))
