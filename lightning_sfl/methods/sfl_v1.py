"""SplitFed V1: every client has a private copy of the server half, and both halves are averaged.

C. Thapa, M. A. P. Chamikara, S. Camtepe, L. Sun, "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022,
SFLV1. Nothing couples the clients within a round, so it is FedAvg of the whole network, whatever the cut.

    each client i, with its server copy i:  all its batches through the cut
    client half <- weighted average;  server half <- weighted average of the copies
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.methods.base import SplitMethod


class SFLV1(SplitMethod):
    """One server copy per participant; one optimizer step moves all active copies.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        kwargs: options of `SplitMethod`; server copies change clients every round, so their optimizer always restarts.
    """

    name = "sfl_v1"
    server_copies = True
    whole_loss = ""

    def __init__(self, backbone: nn.Module, cut_layer: str, **kwargs: Any) -> None:
        super().__init__(backbone, cut_layer, persist_server_optimizer=False, **kwargs)

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        return self.train_server([[upload] for upload in uploads])
