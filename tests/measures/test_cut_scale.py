"""The effective denominator is read off real cross-entropy gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from lightning_sfl.measures.cut_scale import (
    cut_scales,
    effective_denominator,
    residuals,
    row_norms,
    scale_ratio,
    source_norms,
)


def backward(logits: Tensor, labels: Tensor, divide_by: float | None = None) -> Tensor:
    """Gradient at the logits of the mean loss, or of the sum over `divide_by`."""
    leaf = logits.clone().requires_grad_()
    flat, target = leaf.flatten(0, -2), labels.reshape(-1) if labels.shape != logits.shape else labels.flatten(0, -2)
    loss = (
        cross_entropy(flat, target) if divide_by is None else cross_entropy(flat, target, reduction="sum") / divide_by
    )
    return torch.autograd.grad(loss, leaf)[0]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(16, 5, generator=draw), torch.randint(0, 5, (16,), generator=draw)


def test_a_joined_batch_divides_by_all_rows_for_every_client(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    gradient = backward(logits, labels)
    for rows in (slice(0, 3), slice(3, 8), slice(8, 16)):
        assert effective_denominator(logits[rows], gradient[rows], labels[rows]) == pytest.approx(16, rel=1e-5)


def test_soft_labels_sequences_and_ignored_labels(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    soft = 0.9 * one_hot(labels, 5).float() + 0.02
    assert effective_denominator(logits, backward(logits, soft), soft) == pytest.approx(16, rel=1e-5)
    sequences, tokens = logits.reshape(4, 4, 5), labels.reshape(4, 4).clone()
    assert effective_denominator(sequences, backward(sequences, tokens), tokens) == pytest.approx(16, rel=1e-5)
    tokens[:, 0] = -100
    assert effective_denominator(sequences, backward(sequences, tokens), tokens) == pytest.approx(12, rel=1e-5)
    assert residuals(sequences, sequences, tokens)[2].sum() == 12


@pytest.mark.parametrize("gap", [5.0, 15.0, 27.6, 60.0])
def test_confident_predictions_keep_their_denominator(batch: tuple[Tensor, Tensor], gap: float) -> None:
    """In single precision softmax - label is rounded away at the label, and nowhere else."""
    logits, labels = batch
    sure = logits + gap * one_hot(labels, 5)
    assert effective_denominator(sure, backward(sure, labels), labels) == pytest.approx(16, rel=1e-4)
    beyond = logits + 100 * one_hot(labels, 5)  # single precision has no such small numbers
    assert math.isnan(effective_denominator(beyond, backward(beyond, labels), labels))


def test_no_gradient_has_no_denominator(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    assert math.isnan(effective_denominator(logits, torch.zeros_like(logits), labels))


def test_scales_of_messages() -> None:
    raw = torch.tensor([[6.0, 12.0, 3.0], [4.0, 8.0, 2.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    sent = torch.tensor([12.0, 32.0, 0.0], dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    changed = torch.stack([sent, raw[:, 1]], dim=1)
    found = cut_scales(raw, changed, residuals=5 * ones, gradients=ones, own=torch.tensor([3.0, 2.0, 2.0]).double())
    assert found.norm.tolist() == pytest.approx([math.sqrt(12), math.sqrt(8), 0])
    assert found.sample_norm.tolist() == [2.0, 2.0, 0.0]
    assert found.denom.tolist() == [5.0, 5.0, 5.0]
    assert found.gain[:2].tolist() == [1.0, 2.0]
    assert found.scale_rel[:2].tolist() == pytest.approx([0.6, 0.8])
    assert found.gain[2].isnan()


def test_rows_that_changed_places_keep_their_own_norms() -> None:
    draw = torch.Generator().manual_seed(3)
    raw, order = torch.rand(9, generator=draw).double(), torch.randperm(9, generator=draw)
    one = torch.zeros(9, dtype=torch.long)
    assert source_norms(raw, 3 * raw[order], one).tolist() == pytest.approx(raw[order].tolist())
    assert torch.equal(source_norms(raw, 3 * raw, one), raw)
    own = torch.tensor([1.0, 1, 1, 2, 2, 2, 1, 1, 1])
    assert torch.equal(source_norms(raw, raw * own, one), raw)
    assert torch.equal(source_norms(torch.zeros(9), torch.ones(9), one), torch.zeros(9))


def test_rows_change_places_within_a_step_only() -> None:
    raw = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
    steps = torch.tensor([0, 0, 0, 1, 1, 1])
    within = torch.tensor([3.0, 1, 2, 8, 12, 10]).double()
    assert source_norms(raw, within, steps).tolist() == [3, 1, 2, 4, 6, 5]
    across = torch.tensor([4.0, 2, 3, 1, 5, 6]).double()
    assert torch.equal(source_norms(raw, across, steps), raw)


def test_row_norms_join_the_parts_of_a_cut() -> None:
    draw = torch.Generator().manual_seed(1)
    main, residual = torch.randn(4, 2, 3, generator=draw), torch.randn(4, 5, generator=draw)
    joined = torch.cat([main.flatten(1), residual], dim=1)
    assert row_norms([main, residual]).tolist() == pytest.approx(joined.norm(dim=1).tolist())
    assert row_norms([main]).tolist() == pytest.approx(main.flatten(1).norm(dim=1).tolist())


def test_scale_ratio() -> None:
    assert scale_ratio([0.5, 2.0, float("nan")]) == 4.0
    assert math.isnan(scale_ratio([1.0]))


def test_the_pooled_server_gradient_is_the_weighted_mean_and_ignores_who_owns_a_row() -> None:
    draw = torch.Generator().manual_seed(2)
    server, sizes = nn.Linear(6, 5).double(), [3, 5, 8]
    x, y = torch.randn(16, 6, generator=draw).double(), torch.randint(0, 5, (16,), generator=draw)

    def gradient(rows: Tensor) -> Tensor:
        return torch.autograd.grad(cross_entropy(server(x[rows]), y[rows]), server.weight)[0]

    pooled = gradient(torch.arange(16))
    for order in (torch.arange(16), torch.randperm(16, generator=draw)):
        mean = sum(len(rows) / 16 * gradient(rows) for rows in order.split(sizes))
        assert torch.allclose(mean, pooled, rtol=1e-12, atol=1e-14)
