"""Distance correlation against its definition, and inversion where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sfl.measures.inversion import invert, relative_error
from lightning_sfl.measures.leakage import distance_correlation


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def by_definition(x: Tensor, z: Tensor) -> float:
    """Szekely and Rizzo (2013), number by number."""

    def centred(rows: Tensor) -> np.ndarray:
        n = len(rows)
        d = np.array([[float((a - b).norm()) for b in rows] for a in rows])
        found = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    found[i, j] = d[i, j] - d[i].sum() / (n - 2) - d[:, j].sum() / (n - 2)
                    found[i, j] += d.sum() / ((n - 1) * (n - 2))
        return found

    a, b = centred(x), centred(z)
    return float(np.sqrt(max(0.0, (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))))


def test_it_is_what_its_definition_says() -> None:
    x = normal(9, 3)
    z = torch.cat([x[:, :1] ** 2, normal(9, 1, seed=1)], dim=1)
    assert distance_correlation(x, z) == pytest.approx(by_definition(x, z), rel=1e-9)


def test_linear_in_one_dimension_is_1_and_so_are_moved_and_turned_copies() -> None:
    x = normal(30, 1)
    assert distance_correlation(x, -3 * x + 2) == pytest.approx(1)
    y = normal(30, 5)
    turned, _ = torch.linalg.qr(normal(5, 5, seed=3))
    assert distance_correlation(y, 7 * y @ turned - 1) == pytest.approx(1)
    assert distance_correlation(y.view(30, 1, 5, 1), y) == pytest.approx(1)


def test_independent_data_have_about_0_in_many_dimensions_too() -> None:
    """Where the plain sample distance correlation of 60 rows is above 0.9."""
    x, z = normal(60, 400), normal(60, 300, seed=1)
    assert distance_correlation(x, z) < 0.15
    assert distance_correlation(normal(400, 1), normal(400, 1, seed=1)) < 0.15


def test_dependence_without_correlation_is_seen() -> None:
    x = normal(400, 1)
    assert abs(float(torch.corrcoef(torch.cat([x, x**2], dim=1).T)[0, 1])) < 0.2
    assert distance_correlation(x, x**2) > 0.4


def test_of_what_does_not_vary_it_is_0() -> None:
    assert distance_correlation(normal(10, 2), torch.ones(10, 3)) == 0


# --- inversion --------------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_linear_layer_gives_its_input_away() -> None:
    """One row: the weight's gradient is the error times the row, so its direction is all there is to know."""
    row, label = normal(1, 5).float() * 0.3, torch.tensor([2])
    weight, bias = normal(3, 5, seed=1).float().requires_grad_(), normal(3, seed=2).float().requires_grad_()

    def gradient(x: Tensor) -> Tensor:
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, label)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [weight, bias], create_graph=True)])

    target = gradient(row).detach()
    starts = [torch.zeros(1, 5), normal(1, 5, seed=4).float()]
    found = invert(gradient, target, starts, (-2.0, 2.0), 300)
    assert float((found - row).norm() / row.norm()) < 0.01
    masked = target.clone()
    masked[::2] = 0  # as if not sent
    again = invert(gradient, masked, starts, (-2.0, 2.0), 300)
    assert float((again - row).norm() / row.norm()) < 0.05


def test_values_are_matched_within_the_bounds() -> None:
    target = torch.tensor([0.5, 0.0, 3.0])
    found = invert(lambda x: x.flatten(), target, [torch.full((1, 3), 0.2)], (0.0, 1.0), 200, by_cosine=False)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0, 1.0]]), rtol=0, atol=1e-3)


def test_errors_are_in_terms_of_the_mean_row() -> None:
    true, mean = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.zeros(2)
    labels = torch.tensor([0, 1])
    assert relative_error(true, labels, true, labels, mean) == 0
    scale = (20 / 2) ** 0.5
    assert relative_error(torch.zeros(2, 2), labels, true, labels, mean) == pytest.approx(3 / scale)
    swapped = relative_error(true.flip(0), labels, true, labels, mean)
    assert swapped == pytest.approx(20**0.5 / scale)
    assert relative_error(true.flip(0), labels.flip(0), true, labels, mean) == 0  # the copy of the same label counts
