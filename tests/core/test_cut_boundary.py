"""What crosses the cut: detached, counted in bytes by kind and direction, joined and cut up again row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_sfl.core.cut import Boundary, Upload, join, like, num_bytes, parts, replies, state_bytes


def uploads_of(*batches: Tensor | tuple[Tensor, ...]) -> tuple[Boundary, list[Upload]]:
    boundary = Boundary()
    made = []
    for slot, smashed in enumerate(batches):
        labels = torch.zeros(len(parts(smashed)[0]), dtype=torch.long)
        made.append(boundary.upload(slot, 10 + slot, 0, smashed, labels))
    return boundary, made


def test_upload_is_detached_and_counted() -> None:
    smashed = torch.ones(3, 5, requires_grad=True) * 2
    boundary, (upload,) = uploads_of(smashed)
    assert upload.smashed is smashed
    assert not parts(upload.received)[0].requires_grad
    assert (upload.slot, upload.client_id, upload.num_rows) == (0, 10, 3)
    assert boundary.traffic_bytes == {("smashed", "up"): 3 * 5 * 4, ("labels", "up"): 3 * 8}


def test_bytes_add_up_by_kind_and_direction_until_the_round_starts() -> None:
    boundary, _ = uploads_of(torch.ones(2, 3), torch.ones(4, 3, dtype=torch.float64))
    boundary.download([torch.ones(2, 3), torch.ones(2, 7, dtype=torch.bfloat16)])
    boundary.count("weights", "down", 100)
    boundary.count("weights", "down", 1)
    assert boundary.traffic_bytes == {
        ("smashed", "up"): 2 * 3 * 4 + 4 * 3 * 8,
        ("labels", "up"): 6 * 8,
        ("cut_gradients", "down"): 2 * 3 * 4 + 2 * 7 * 2,
        ("weights", "down"): 101,
    }
    boundary.start_round()
    assert not boundary.traffic_bytes


def test_bytes_of_a_state_count_parameters_and_buffers() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    # weight 6, bias 2, gamma, beta, mean, variance 2 each, all of 4 bytes; one counter of 8
    assert state_bytes(net) == 4 * (6 + 2 + 8) + 8
    assert num_bytes([]) == 0


def test_join_keeps_the_order_and_makes_fresh_leaves() -> None:
    _, uploads = uploads_of(torch.full((2, 3), 1.0), torch.full((1, 3), 2.0))
    joined = join(uploads)
    assert isinstance(joined, Tensor)
    assert joined[:, 0].tolist() == [1, 1, 2]
    assert joined.is_leaf
    assert joined.requires_grad


def test_joining_one_upload_copies_it() -> None:
    _, (upload,) = uploads_of(torch.ones(2, 3))
    joined = join([upload])
    with torch.no_grad():
        parts(joined)[0].zero_()
    assert bool((parts(upload.smashed)[0] == 1).all())


def test_replies_are_the_slices_of_the_joint_gradient() -> None:
    _, uploads = uploads_of(torch.ones(2, 3), torch.ones(1, 3), torch.ones(4, 3))
    received = join(uploads)
    factors = torch.arange(7.0)[:, None]
    logits = (received * factors).clone()  # type: ignore[operator]
    logits.retain_grad()
    logits.sum().backward()
    answers = replies(uploads, received, logits)
    assert [a.raw[0][:, 0].tolist() for a in answers] == [[0, 1], [2], [3, 4, 5, 6]]
    assert all(a.sent[0] is a.raw[0] for a in answers)
    assert [len(a.logits_gradient) for a in answers if a.logits_gradient is not None] == [2, 1, 4]


def test_nobody_watching_leaves_no_gradient_of_the_logits() -> None:
    _, uploads = uploads_of(torch.ones(2, 3))
    received = join(uploads)
    logits = received * 2  # type: ignore[operator]
    logits.sum().backward()
    assert replies(uploads, received, logits)[0].logits_gradient is None


def test_a_tuple_is_carried_whole() -> None:
    first = (torch.ones(2, 3), torch.full((2, 4, 4), 5.0))
    second = (torch.zeros(1, 3), torch.full((1, 4, 4), 6.0))
    boundary, uploads = uploads_of(first, second)
    assert boundary.traffic_bytes["smashed", "up"] == 4 * 3 * (3 + 16)
    received = join(uploads)
    assert isinstance(received, tuple)
    logits = received[0].sum(1) * 2 + received[1].sum((1, 2)) * 3
    logits.sum().backward()
    answers = replies(uploads, received, logits)
    assert [[tuple(part.shape) for part in a.raw] for a in answers] == [[(2, 3), (2, 4, 4)], [(1, 3), (1, 4, 4)]]
    assert all(bool((a.raw[0] == 2).all() and (a.raw[1] == 3).all()) for a in answers)


def test_a_part_the_server_does_not_use_gets_a_zero_gradient() -> None:
    _, uploads = uploads_of((torch.ones(2, 3), torch.ones(2, 2)))
    received = join(uploads)
    logits = received[0] * 2
    logits.sum().backward()
    assert replies(uploads, received, logits)[0].raw[1].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("form", [torch.ones(1), (torch.ones(1), torch.ones(2))])
def test_like_undoes_parts(form: Tensor | tuple[Tensor, ...]) -> None:
    again = like(form, list(parts(form)))
    assert type(again) is type(form)
    assert all(one is other for one, other in zip(parts(again), parts(form), strict=True))
