"""SFL: SplitFed V2 with interleaved clients, the reference the other methods are compared with.

C. Thapa, M. A. P. Chamikara, S. Camtepe, L. Sun, "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022,
SFLV2. Clients run side by side, so batches of different clients alternate at the one server half.

    for each sweep t:  every client i that has a t-th batch uploads it
                       for each upload in turn: server step on its mean loss; client i gets its cut gradient
    client half <- weighted average;  server half: as trained
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.methods.base import SplitMethod


class SFL(SplitMethod):
    """One server half, stepped once for every upload, clients interleaved batch by batch."""

    name = "sfl"

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        return [reply for upload in uploads for reply in self.train_server([[upload]])]
