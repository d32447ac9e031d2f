"""The V value of GAS against numbers worked out by hand."""

from __future__ import annotations

import torch

from lightning_sfl.measures.dissimilarity import gradient_dissimilarity


def test_the_same_batch_has_none() -> None:
    gradient = [torch.randn(3, 2), torch.randn(2)]
    assert gradient_dissimilarity(gradient, [gradient]) == (0.0, 0.0)


def test_squared_distance_from_the_probes_mean_per_tensor() -> None:
    gradient = [torch.tensor([1.0, 2.0]), torch.tensor([[0.0]])]
    probes = [[torch.tensor([0.0, 2.0]), torch.tensor([[4.0]])], [torch.tensor([0.0, 0.0]), torch.tensor([[2.0]])]]
    assert gradient_dissimilarity(gradient, probes) == ((1 + 1 + 9) / 2, 11.0)
