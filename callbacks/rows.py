"""Halves as rows: all trainable parameters of a half in one stretch of memory, which few calls measure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PIECE = 1 << 16  # a longer norm in single precision loses digits


def row_of(half: Sequence[Tensor]) -> Tensor:
    """A copy of these tensors, one after another."""
    return torch.cat([tensor.reshape(-1) for tensor in half]) if half else torch.zeros(0)


class Layers:
    """Which of a half's trainable parameters, and which stretches of its row, belong to each layer by its name."""

    def __init__(self, half: nn.Module) -> None:
        trained = [(name, parameter) for name, parameter in half.named_parameters() if parameter.requires_grad]
        self.sizes = [parameter.numel() for _, parameter in trained]
        self.places: dict[str, list[int]] = {}
        for place, (name, _) in enumerate(trained):
            self.places.setdefault(name.rpartition(".")[0] or name, []).append(place)

    def size(self, layer: str) -> int:
        """Its number of weights."""
        return sum(self.sizes[place] for place in self.places[layer])

    def of(self, layer: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Its tensors among those of the half, one for each trainable parameter."""
        return [tensors[place] for place in self.places[layer]]

    def split(self, row: Tensor) -> tuple[Tensor, ...]:
        """A row of the half as one stretch for each parameter."""
        return row.split(self.sizes)


class Room:
    """A row like a half's, to be written again and again; `tensors` is the same memory in the tensors' own shapes."""

    def __init__(self, half: Sequence[Tensor]) -> None:
        self.row = row_of(half)
        parts = self.row.split([tensor.numel() for tensor in half])
        self.tensors = [part.view(tensor.shape) for part, tensor in zip(parts, half, strict=True)]


def copy_into(rooms: Sequence[Room], halves: Sequence[Sequence[Tensor]]) -> None:
    """Write the tensors of each half into its room, in one call for all."""
    targets = [tensor for room in rooms for tensor in room.tensors]
    torch._foreach_copy_(targets, [tensor for half in halves for tensor in half])


def norms(rows: Sequence[Tensor]) -> list[Tensor]:
    """The norm of each row, on the device."""
    if all(row.numel() <= PIECE for row in rows):
        return list(torch._foreach_norm(list(rows)))
    return [square(row).sqrt() for row in rows]


def square(row: Tensor) -> Tensor:
    """Squared norm in float64, on the device."""
    return torch.stack(torch._foreach_norm(row.split(PIECE))).double().square().sum()
