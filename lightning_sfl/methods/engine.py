"""How the halves of several clients are run: one after another, or all in one stroke."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_sfl.core.cut import Smashed, Upload, cloned
from lightning_sfl.core.errors import require
from lightning_sfl.core.precision import ALLOWED, PRECISIONS
from lightning_sfl.core.randomness import seed_torch
from lightning_sfl.core.rounds import Batch
from lightning_sfl.core.stacked import Stacked, why_not
from lightning_sfl.methods.module import Role
from lightning_sfl.methods.paced import Paced


class Engine(Paced):
    """Forward passes of client halves and of server halves; what a step makes of them is in `Sides`.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        client_engine: run the halves of a step's clients one after another in a `loop`, or `stacked`, in one stroke:
            faster for small networks and batches, the same up to rounding, and only for chains of convolutions,
            pooling, dense layers and activations, without dropout and batch normalisation.
        compile: run both halves through torch.compile, which pays for large networks only: it takes a while to begin.
        kwargs: options of `SplitModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        *,
        client_engine: Literal["loop", "stacked"] = "loop",
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        require(client_engine in ("loop", "stacked"), "client_engine", client_engine, "loop or stacked")
        self.stacked, self.compiled = client_engine == "stacked", compile
        why = f"loop, since in {self.method_name} one client steps at a time"
        require(not (self.stacked and self.one_at_a_time), "client_engine", client_engine, why)

    def setup(self, stage: str) -> None:
        """Lightning's hook."""
        require(self.trainer.precision in PRECISIONS, "precision", self.trainer.precision, ALLOWED)
        super().setup(stage)

    def cut(self, example: Tensor) -> None:
        """Cut the network, and see that its halves can be run as asked."""
        super().cut(example)
        for half in [self.client_half, self.server_half, *self.slots, *self.server_slots] if self.compiled else ():
            half.compile()  # in place: the names of parameters stay
        if self.stacked:
            self.client_stack = stack_of(self.client_half, example)
            if self.server_copies:
                self.server_stack = stack_of(self.server_half, self.client_half(example.to(self.device)))

    def forward_clients(self, batches: Sequence[Batch], inputs: Sequence[Tensor]) -> list[Smashed]:
        """Smashed data of each batch, with its graph."""
        if self.stacked and len(batches) > 1:
            return [*self.client_stack.forward([self.slots[batch.slot] for batch in batches], inputs)]
        smashed = []
        for batch, x in zip(batches, inputs, strict=True):
            self.draw_from("client", batch)
            smashed.append(self.slots[batch.slot](x))
        return smashed

    def forward_privates(self, batches: Sequence[Batch], smashed: Sequence[Any]) -> list[Tensor]:
        """Logits of each batch from the server half of its slot, which no boundary parts from the client half."""
        halves = [self.server_of(batch.slot) for batch in batches]
        if self.stacked and len(batches) > 1:
            return self.server_stack.forward(halves, smashed)
        logits = []
        for batch, half, own in zip(batches, halves, smashed, strict=True):
            self.draw_from("server", batch)
            logits.append(half(own))
        return logits

    def forward_servers(self, groups: Sequence[Sequence[Upload]], joined: Sequence[Any]) -> list[Tensor]:
        """Logits of each group's joined data from the server half of its first slot."""
        if self.stacked and self.server_copies and len(groups) > 1:
            return self.server_stack.forward([self.server_of(uploads[0].slot) for uploads in groups], joined)
        logits = []
        for uploads, received in zip(groups, joined, strict=True):
            self.draw_from("server", uploads[0])
            logits.append(self.server_logits(uploads, received))
        return logits

    def server_logits(self, uploads: Sequence[Upload], received: Smashed) -> Tensor:
        """The server half of the first upload's slot on the joined data of all of them."""
        logits: Tensor = self.server_of(uploads[0].slot)(cloned(received))
        return logits

    def draw_from(self, side: Role, turn: Batch | Upload) -> None:
        """Point torch's generator at this side's own stream, so that dropout does not depend on who ran before."""
        device = self.device if side == "client" else self.server_device
        seed_torch(self.seed, side, self.current_epoch, turn.client_id, turn.local_step, device)


def stack_of(half: nn.Module, example: Smashed) -> Stacked:
    """Runs copies of this half, or says which of its layers stands in the way."""
    reason = why_not(half, example)
    require(reason is None, "client_engine", "stacked", f"loop for this network, since {reason}")
    return Stacked(half)
