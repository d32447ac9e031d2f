"""What travels between processes: a header of eight integers, then raw tensors behind a table of their forms.

Nothing is pickled. A table entry is eight integers: dtype, number of dimensions, sizes; an absent tensor has dtype -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sfl.core.cut import Reply, Smashed, Upload, parts
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
    """The tensors of a message, sharing its memory."""
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
        tensors.append(message[place : place + size].view(DTYPES[code]).view(shape))
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
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _numbers(raw: Tensor) -> Tensor:
    return raw.view(torch.int64).cpu()


# --- what crosses the cut -------------------------------------------------------------------------------------------


def upload_letter(uploads: Sequence[Upload]) -> list[Tensor | None]:
    """Uploads as tensors: who they are, then received data and labels of each."""
    who = [[u.slot, u.client_id, u.local_step, _form(u.received)] for u in uploads]
    content: list[Tensor | None] = [torch.tensor(who, dtype=torch.int64).view(-1, 4)]
    for upload in uploads:
        content += [*parts(upload.received), upload.labels]
    return content


def uploads_of(letter: Sequence[Tensor | None], device: torch.device) -> list[Upload]:
    """What `upload_letter` wrote, at the server: there is no smashed data with a graph, only what was received."""
    who, *content = letter
    rest = iter(content)
    uploads = []
    for slot, client, step, form in [] if who is None else who.tolist():
        tensors = [_present(next(rest)).to(device) for _ in range(form or 1)]
        received: Smashed = tuple(tensors) if form else tensors[0]
        uploads.append(Upload(slot, client, step, received, received, _present(next(rest)).to(device)))
    return uploads


def _form(smashed: Smashed) -> int:
    """Number of parts of a tuple; 0 for a tensor alone."""
    return len(smashed) if isinstance(smashed, tuple) else 0


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise PlacementError("a tensor is missing from a message")
    return tensor


def reply_letter(answers: Sequence[Reply]) -> list[Tensor | None]:
    """What is sent of these answers: for each its slot and the number of its parts, then the parts."""
    who = torch.tensor([[answer.upload.slot, len(answer.sent)] for answer in answers], dtype=torch.int64).view(-1, 2)
    return [who, *(part for answer in answers for part in answer.sent)]


def replies_of(letter: Sequence[Tensor | None], uploads: Sequence[Upload], device: torch.device) -> list[Reply]:
    """What `reply_letter` wrote, at the clients: the answer to the first upload of each slot."""
    who, *content = letter
    rest = iter(content)
    own = {upload.slot: upload for upload in reversed(uploads)}
    answers = []
    for slot, count in [] if who is None else who.tolist():
        sent = tuple(_present(next(rest)).to(device) for _ in range(count))
        answers.append(Reply(own[slot], sent, sent))
    return answers
