"""Messages: raw tensors behind a table, the same on arrival, refused when their sizes do not add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.core.errors import PlacementError
from lightning_sfl.placement.letters import (
    answer_letter,
    answers_of,
    replies_of,
    reply_letter,
    upload_letter,
    uploads_of,
)
from lightning_sfl.placement.optimizer_states import letter_of, states_of
from lightning_sfl.placement.wire import DTYPES, pack, read, spelled, unpack

HOST = torch.device("cpu")


def through(letter: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return unpack(pack(letter, HOST))


@pytest.mark.parametrize("seed", range(20))
def test_tensors_arrive_as_they_were(seed: int) -> None:
    rng = np.random.default_rng(seed)
    letter: list[torch.Tensor | None] = []
    for _ in range(rng.integers(0, 6)):
        shape = rng.integers(0, 4, size=rng.integers(0, 5)).tolist()
        dtype = DTYPES[rng.integers(len(DTYPES))]
        letter.append(None if rng.random() < 0.2 else torch.tensor(rng.normal(size=shape) * 9).to(dtype))
    arrived = through(letter)
    assert len(arrived) == len(letter)
    for sent, got in zip(letter, arrived, strict=True):
        if sent is None or got is None:
            assert sent is got
        else:
            assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
            assert torch.equal(got, sent)


def test_views_and_graphs_stay_behind() -> None:
    tensor = torch.arange(12.0, requires_grad=True).view(3, 4).T
    (arrived,) = through([tensor])
    assert arrived is not None
    assert torch.equal(arrived, tensor)
    assert not arrived.requires_grad


def test_a_message_that_does_not_add_up_is_refused() -> None:
    message = pack([torch.ones(5)], HOST)
    with pytest.raises(PlacementError, match="bytes"):
        unpack(torch.cat([message, message[:16]]))


def test_too_many_dimensions_are_refused() -> None:
    with pytest.raises(PlacementError, match="dimensions"):
        pack([torch.ones([1] * 7)], HOST)


def test_plain_values_travel_and_others_do_not() -> None:
    for value in (None, True, "runs/sfl", 3, 0.1, ["a", {"b": 1}]):
        assert read(spelled(value)) == value
    with pytest.raises(PlacementError, match="a set does not travel"):
        spelled({1})


def upload(slot: int, rows: int, several: bool = False) -> Upload:
    received = (torch.randn(rows, 3), torch.randn(rows, 2)) if several else torch.randn(rows, 3)
    return Upload(slot, 10 + slot, 4, received, received, torch.arange(rows))


@pytest.mark.parametrize("several", [False, True])
def test_uploads_and_replies(several: bool) -> None:
    sent = [upload(2, 4, several), upload(0, 1, several)]
    arrived = uploads_of(through(list(upload_letter(sent))), HOST)
    assert [(u.slot, u.client_id, u.local_step, u.num_rows) for u in arrived] == [(2, 12, 4, 4), (0, 10, 4, 1)]
    assert isinstance(arrived[0].received, tuple) == several
    assert torch.equal(arrived[1].labels, sent[1].labels)
    parts = [(torch.randn(4, 3),) * (2 if several else 1), (torch.randn(1, 3),) * (2 if several else 1)]
    letter = reply_letter([Reply(u, part, part) for u, part in zip(arrived, parts, strict=True)])
    back = replies_of(through(list(letter)), sent, HOST)
    assert [reply.upload for reply in back] == sent
    assert all(
        torch.equal(a, b)
        for reply, part in zip(back, parts, strict=True)
        for a, b in zip(reply.sent, part, strict=True)
    )


def test_answers_for_watchers_hold_everything() -> None:
    first, second = upload(0, 2), upload(1, 3)
    raw = (torch.randn(2, 3),)
    changed = (raw[0] * 2,)
    plain = Reply(second, (torch.randn(3, 3),), (), torch.randn(3, 4), torch.randn(3, 4), 7)
    plain.sent = plain.raw
    back = answers_of(through(list(answer_letter([Reply(first, raw, changed), plain]))), [first, second], HOST)
    assert torch.equal(back[0].sent[0], changed[0])
    assert torch.equal(back[0].raw[0], raw[0])
    assert back[0].logits is None
    assert back[1].replayed == 7
    assert back[1].sent[0] is back[1].raw[0]
    assert back[1].logits_gradient is not None
    assert torch.equal(back[1].logits_gradient, plain.logits_gradient)  # type: ignore[arg-type]
    assert torch.equal(back[1].upload.labels, second.labels)


def test_optimizer_states() -> None:
    states = {3: {"step": torch.tensor(4.0), "exp_avg": torch.randn(2, 2), "none": None, "flag": True}, 0: {"x": 0.5}}
    back = states_of(through(list(letter_of(states))))
    assert back.keys() == states.keys()
    assert torch.equal(back[3]["exp_avg"], states[3]["exp_avg"])
    assert (back[3]["none"], back[3]["flag"], back[0]["x"]) == (None, True, 0.5)
