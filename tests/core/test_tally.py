"""Loss and accuracy of a round: means over rows, not over batches."""

from __future__ import annotations

import pytest
import torch

from lightning_sfl.core.tally import Tally


def test_batches_count_by_their_rows() -> None:
    tally = Tally()
    tally.add(torch.tensor(1.0), torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tally.add(torch.tensor(5.0), torch.tensor([[2.0, 0.0]] * 3), torch.tensor([0, 1, 1]))
    assert tally.read() == (4.0, 0.5)  # (1 * 1 + 3 * 5) / 4 and 2 of 4


def test_sequences_count_every_label() -> None:
    tally = Tally()
    logits = torch.tensor([[[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]], [[9.0, 0.0]] * 3])  # (2 rows, 3 positions, 2 classes)
    tally.add(torch.tensor(2.0), logits, torch.tensor([[0, 1, 1], [1, 1, 0]]))
    loss, accuracy = tally.read()
    assert loss == 2
    assert accuracy == pytest.approx(3 / 6)


def test_nothing_of_the_graph_is_kept() -> None:
    tally = Tally()
    logits = torch.zeros(2, 3, requires_grad=True)
    tally.add(logits.sum(), logits, torch.tensor([0, 1]))
    assert not tally.losses[0].requires_grad
