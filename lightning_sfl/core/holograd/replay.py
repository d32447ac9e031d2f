"""A replica: whoever knows the start state follows the coordinator bit for bit, from the messages alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_sfl.core.holograd.basis import Basis
from lightning_sfl.core.holograd.commitment import Commitment, hash_tensors
from lightning_sfl.core.holograd.directions import DirectionKind, Directions
from lightning_sfl.core.holograd.projection import unflat
from lightning_sfl.core.holograd.synthesis import Message, synthesize

Named = Sequence[tuple[str, nn.Parameter]]
EMPTY = bytes(32)


def commit(base: bytes, parameters: Named, basis: Basis, batch: bytes) -> Commitment:
    """Commitment to these parameters, this basis and the batch with this digest."""
    rows = [("basis", basis.rows)]
    return Commitment(base, hash_tensors(parameters), batch, hash_tensors(rows) if len(basis.rows) else b"")


def sets_of(
    base: bytes, parameters: Named, basis: Basis, step: int, batches: Sequence[bytes], num_scalars: int,
    kind: DirectionKind,
) -> list[Directions]:  # fmt: skip
    """Directions of one step, a set for each batch: as many as the basis leaves of `num_scalars`."""
    commitment = commit(base, parameters, basis, EMPTY)
    count = num_scalars - len(basis.rows)
    seeds = [replace(commitment, batch=batch).seeds(step, count) for batch in batches]
    return [Directions(each, basis.rows, kind) for each in seeds]


class Replica:
    """Parameters, basis and an optimizer of the coordinator's kind; `apply` is one step.

    `clip` bounds the norm of an estimate as the coordinator does.
    """

    def __init__(
        self, base: bytes, parameters: Named, basis: Basis, kind: DirectionKind, optimizer: torch.optim.Optimizer,
        clip: float | None = None,
    ) -> None:  # fmt: skip
        self.base, self.named, self.basis, self.kind = base, list(parameters), basis, kind
        self.optimizer, self.clip = optimizer, clip

    def estimate(self, message: Message) -> Tensor:
        """The estimate that the coordinator stepped with."""
        num_scalars = len(message.coordinates) + len(message.coefficients[0])
        sets = sets_of(self.base, self.named, self.basis, message.step, message.batches, num_scalars, self.kind)
        return synthesize(message.coordinates, message.coefficients, sets)

    def apply(self, message: Message) -> None:
        """Take the coordinator's step."""
        estimate = self.estimate(message)
        parameters = [parameter for _, parameter in self.named if parameter.requires_grad]
        for parameter, piece in zip(parameters, unflat(estimate, parameters), strict=True):
            parameter.grad = piece.clone()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()
        self.basis.learn(estimate)
