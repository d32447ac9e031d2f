"""Letters about what crosses the cut: uploads, what is sent back, and answers for whoever watches them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_sfl.core.cut import Reply, Smashed, Upload, parts
from lightning_sfl.core.errors import PlacementError

Letter = Sequence[Tensor | None]


def upload_letter(uploads: Sequence[Upload]) -> Letter:
    """Uploads as tensors: who they are, then received data and labels of each."""
    who = [[u.slot, u.client_id, u.local_step, _form(u.received)] for u in uploads]
    content = [tensor for upload in uploads for tensor in (*parts(upload.received), upload.labels)]
    return [_table(who, 4), *content]


def uploads_of(letter: Letter, device: torch.device) -> list[Upload]:
    """What `upload_letter` wrote, at the server: there is no smashed data with a graph, only what was received."""
    who, rest = _opened(letter, device)
    uploads = []
    for slot, client, step, form in who:
        tensors = [next(rest) for _ in range(form or 1)]
        received: Smashed = tuple(tensors) if form else tensors[0]
        uploads.append(Upload(slot, client, step, received, received, next(rest)))
    return uploads


def reply_letter(answers: Sequence[Reply]) -> Letter:
    """What is sent of these answers: for each its slot and the number of its parts, then the parts."""
    who = [[answer.upload.slot, len(answer.sent)] for answer in answers]
    return [_table(who, 2), *(part for answer in answers for part in answer.sent)]


def replies_of(letter: Letter, uploads: Sequence[Upload], device: torch.device) -> list[Reply]:
    """What `reply_letter` wrote, at the clients: the answer to the first upload of each slot."""
    who, rest = _opened(letter, device)
    own = {upload.slot: upload for upload in reversed(uploads)}
    answers = []
    for slot, count in who:
        sent = tuple(next(rest) for _ in range(count))
        answers.append(Reply(own[slot], sent, sent))
    return answers


def answer_letter(answers: Sequence[Reply]) -> Letter:
    """Answers with all their tensors; what is sent as it came from the backward travels once."""
    who, content = [], []
    for answer in answers:
        same = all(sent is raw for sent, raw in zip(answer.sent, answer.raw, strict=True))
        seen = [] if answer.logits is None else [answer.logits, answer.logits_gradient]
        who.append([answer.upload.slot, answer.upload.local_step, len(answer.raw), same, len(seen), answer.replayed])
        content += [*answer.raw, *([] if same else answer.sent), *seen, answer.upload.labels]
    return [_table(who, 6), *content]


def answers_of(letter: Letter, uploads: Sequence[Upload], device: torch.device) -> list[Reply]:
    """What `answer_letter` wrote, as answers to those of `uploads` that are elsewhere."""
    who, rest = _opened(letter, device)
    stubs = {upload.slot: upload for upload in uploads}
    answers = []
    for slot, step, count, same, seen, replayed in who:
        raw = tuple(next(rest) for _ in range(count))
        sent = raw if same else tuple(next(rest) for _ in range(count))
        logits, gradient = (next(rest), next(rest)) if seen else (None, None)
        upload = Upload(slot, stubs[slot].client_id, step, (), (), next(rest))
        answers.append(Reply(upload, raw, sent, logits, gradient, replayed))
    return answers


def _form(smashed: Smashed) -> int:
    """Number of parts of a tuple; 0 for a tensor alone."""
    return len(smashed) if isinstance(smashed, tuple) else 0


def _table(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).view(-1, width)


def _opened(letter: Letter, device: torch.device) -> tuple[list[list[int]], Iterator[Tensor]]:
    """The table at the front, and the tensors behind it on `device`."""
    who, *content = letter
    rows: list[list[int]] = [] if who is None else who.tolist()
    return rows, (_present(tensor).to(device) for tensor in content)


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise PlacementError("a tensor is missing from a message")
    return tensor
