"""What travels between processes: a header of eight integers, then raw tensors behind a table of their forms.

Nothing is pickled. A table entry is eight integers: dtype, number of dimensions, sizes; an absent tensor has dtype -1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sfl.core.errors import PlacementError

DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
ENTRY, ALIGNED = 8, 16
MOST_DIMENSIONS = ENTRY - 2


def pack(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """One row of bytes on `device`: the number of tensors, the table, the tensors."""
    table = torch.tensor([[len(tensors)] + [0] * (ENTRY - 1), *map(_entry, tensors)], dtype=torch.int64)
    pieces = [_bytes(table).to(device)]
    for tensor in tensors:
        if tensor is not None:
            raw = _bytes(tensor.detach()).to(device)
            pieces += [raw, raw.new_zeros(-len(raw) % ALIGNED)]
    return torch.cat(pieces)


def unpack(message: Tensor) -> list[Tensor | None]:
    """The tensors of a message, each in memory of its own: what keeps one shall not keep all, and can be saved."""
    count = int(_numbers(message[: ENTRY * 8])[0])
    table = _numbers(message[: ENTRY * 8 * (count + 1)]).view(-1, ENTRY)[1:].tolist()
    tensors: list[Tensor | None] = []
    place = ENTRY * 8 * (count + 1)
    for code, dimensions, *sizes in table:
        if code < 0:
            tensors.append(None)
            continue
        shape = sizes[:dimensions]
        size = math.prod(shape) * DTYPES[code].itemsize
        tensors.append(message[place : place + size].clone().view(DTYPES[code]).view(shape))
        place += size + -size % ALIGNED
    if place != len(message):
        raise PlacementError(f"a message of {len(message)} bytes tells of {place}")
    return tensors


def _entry(tensor: Tensor | None) -> list[int]:
    if tensor is None:
        return [-1] + [0] * (ENTRY - 1)
    if tensor.dim() > MOST_DIMENSIONS:
        raise PlacementError(
            f"tensors of more than {MOST_DIMENSIONS} dimensions do not travel, this has {tensor.dim()}"
        )
    return [DTYPES.index(tensor.dtype), tensor.dim(), *tensor.shape] + [0] * (MOST_DIMENSIONS - tensor.dim())


def _bytes(tensor: Tensor) -> Tensor:
    if not tensor.numel():
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _numbers(raw: Tensor) -> Tensor:
    return raw.view(torch.int64).cpu()


def spelled(value: Any) -> Tensor:
    """A plain value (text, numbers, lists) as bytes of JSON."""
    try:
        return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    except TypeError:
        raise PlacementError(f"a {type(value).__name__} does not travel between processes") from None


def read(text: Tensor) -> Any:
    """The value that was `spelled`."""
    return json.loads(bytes(text.cpu().numpy()))
