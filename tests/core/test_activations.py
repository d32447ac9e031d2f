"""Running statistics, generation, logit prior and progress weights of GAS, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_sfl.core.activation_buffer import ActivationBuffer, Generation, balance
from lightning_sfl.core.activation_statistics import ActivationStatistics, cholesky
from lightning_sfl.core.cut import Upload
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.logit_prior import logit_prior
from lightning_sfl.core.progress_weight import ProgressCount, ProgressWeight


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def merged(batches: list[tuple[Tensor, float]], **options: Any) -> ActivationStatistics:
    found = ActivationStatistics(1, **options)
    for rows, weight in batches:
        found.update(rows, torch.zeros(len(rows), dtype=torch.long), torch.full((len(rows),), weight))
    return found


@pytest.mark.parametrize(("epsilon", "variance"), [(0.0, 9.5), (1e-5, 9.50001)])
def test_weighted_mean_and_variance(epsilon: float, variance: float) -> None:
    found = merged([(column(1, 3), 1.0), (column(8), 2.0)], epsilon=epsilon)
    assert found.weight.item() == 4
    assert found.mean.item() == pytest.approx(5, rel=1e-12)
    assert found.spread.item() == pytest.approx(variance, rel=1e-12)


def test_full_covariance() -> None:
    found = ActivationStatistics(2, "full")
    rows = torch.tensor([[1.0, 0.0], [3.0, 2.0]], dtype=torch.float64)
    found.update(rows, torch.tensor([1, 1]), torch.tensor([1.0, 3.0]))
    assert found.known == [1]
    assert found.mean[1].tolist() == [2.5, 1.5]
    torch.testing.assert_close(found.spread[1], torch.full((2, 2), 0.75, dtype=torch.float64))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_order_does_not_matter_and_all_is_pooled(covariance: Any) -> None:
    draw = np.random.default_rng(0)
    batches = [(torch.from_numpy(draw.normal(size=(n, 3))), float(n)) for n in (4, 1, 6)]
    options = {"covariance": covariance, "epsilon": 0.0}
    one, other = merged(batches, **options), merged([(b[0].flip(0), b[1]) for b in batches[::-1]], **options)
    torch.testing.assert_close(one.spread, other.spread, rtol=0, atol=1e-12)
    rows = torch.cat([b[0] for b in batches])
    weights = np.repeat([b[1] for b in batches], [len(b[0]) for b in batches])
    wanted = torch.from_numpy(np.cov(rows.numpy().T, aweights=weights, ddof=0))
    found = one.spread[0]
    torch.testing.assert_close(found, wanted if covariance == "full" else wanted.diagonal(), rtol=0, atol=1e-12)
    torch.testing.assert_close(one.mean[0], torch.from_numpy(np.average(rows.numpy(), 0, weights)))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_draws_have_these_moments(covariance: Any) -> None:
    rows = torch.tensor([[0.0, 0.0], [2.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    found = merged([(rows, 1.0)], covariance=covariance)
    drawn = found.draw(0, 40_000, np.random.default_rng(0))
    full = torch.from_numpy(np.cov(rows.numpy().T, ddof=0))
    wanted = full if covariance == "full" else full.diagonal().diag()
    torch.testing.assert_close(drawn.T.cov(), wanted, rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.mean(0), rows.mean(0), rtol=0, atol=0.02)


def test_cholesky_takes_the_least_jitter() -> None:
    flat = torch.ones(2, 2, dtype=torch.float64) - 1e-4 * torch.eye(2, dtype=torch.float64)
    factor = cholesky(flat)
    assert factor is not None
    torch.testing.assert_close(factor @ factor.T, flat + 1e-3 * torch.eye(2), rtol=0, atol=1e-9)
    assert cholesky(torch.full((2, 2), float("nan"))) is None


def filled(labels: list[int], how: Generation, step: int = 1) -> tuple[Tensor, Tensor, ActivationBuffer]:
    buffer = ActivationBuffer(1, 3, how)
    received = torch.arange(2.0 * len(labels)).view(-1, 2, 1)
    buffer.add(Upload(0, 0, 0, received, received, torch.tensor(labels)), 1.0)
    assert buffer.full
    x, y = buffer.joint_batch(2, step, np.random.default_rng(0))
    assert isinstance(x, Tensor)
    return x.detach(), y, buffer


def test_a_balanced_batch() -> None:
    x, y, buffer = filled([2, 0, 0, 1, 0], Generation())
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    assert x.shape == (6, 2, 1)
    assert x[[0, 1, 2, 4]].flatten(1).tolist() == [[2, 3], [4, 5], [6, 7], [0, 1]]
    z = np.random.default_rng(0).standard_normal((1, 2), dtype=np.float32)
    torch.testing.assert_close(x[3].flatten(), torch.from_numpy([[6, 7]] + z * 1e-5**0.5)[0].float())
    buffer.clear()
    assert not buffer.full


@pytest.mark.parametrize(
    ("how", "labels", "counts"),
    [
        (Generation(overflow="keep"), [2, 0, 0, 1, 0], [3, 2, 2]),
        (Generation(overflow="subsample"), [2, 0, 0, 1, 0], [2, 2, 2]),
        (Generation(), [0, 0, 1, 0], [3, 1, 0]),
        (Generation(partial=True), [0, 0, 1, 0], [2, 2, 0]),
        (Generation(every=2), [2, 0, 0, 1, 0], [3, 1, 1]),
        (Generation(every=0), [2, 0, 0, 1, 0], [3, 1, 1]),
    ],
)
def test_ways_to_balance(how: Generation, labels: list[int], counts: list[int]) -> None:
    x, y, _ = filled(labels, how)
    assert torch.bincount(y, minlength=3).tolist() == counts
    assert len(x) == len(y)
    assert how.every != 2 or filled(labels, how, step=2)[1].tolist() == [0, 0, 1, 1, 2, 2]


def test_subsamples_and_nonnegative_draws() -> None:
    found = merged([(column(-5, 5), 1.0)])
    rows, labels = column(*range(100)), torch.zeros(100, dtype=torch.long)
    x, _ = balance(rows, labels, 30, found, Generation(overflow="subsample"), np.random.default_rng(0))
    assert len(set(x.flatten().tolist())) == 30
    assert x.max() > 50
    made, _ = balance(rows[:0], labels[:0], 200, found, Generation(nonnegative=True), np.random.default_rng(0))
    assert made.min() == 0
    assert made.max() > 1


def test_refusals() -> None:
    tensor, labels = torch.zeros(2, 9), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ConfigError, match=r"covariance='full' is not allowed: 9 numbers at the cut .*largest_full=8"):
        ActivationBuffer(1, 2, Generation(covariance="full", largest_full=8)).add(
            Upload(0, 0, 0, tensor, tensor, labels), 1.0
        )
    for received, y in (((tensor, tensor), labels), (tensor, labels[:, None])):
        with pytest.raises(ConfigError, match=r"generation.every=1 is not allowed: 0 where"):
            ActivationBuffer(1, 2, Generation()).add(Upload(0, 0, 0, received, received, y), 1.0)
        ActivationBuffer(1, 2, Generation(every=0)).add(Upload(0, 0, 0, received, received, y), 1.0)
    for key, value in {"every": -1, "covariance": "half", "overflow": "drop", "largest_full": 0}.items():
        with pytest.raises(ConfigError, match=rf"generation\.{key}={value!r} is not allowed"):
            Generation(**{key: value})  # type: ignore[arg-type]


def test_prior() -> None:
    prior = logit_prior(np.array([0, 0, 0, 1]), 3)
    assert prior.tolist() == pytest.approx([-0.287682, -1.386294, -27.631021], abs=1e-6)
    logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    loss = cross_entropy(logits + prior, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(0.287682, abs=1e-6)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.125, 0.125, 0]] * 2).double(), rtol=0, atol=1e-11)
    assert logit_prior(np.array([0, 0, 0, 1]), 3, 2.0)[1].item() == pytest.approx(2 * np.log(0.25), abs=1e-9)


def test_newcomers_start_where_training_stands() -> None:
    found = {}
    for shape in ("linear", "cumulative"):
        count = ProgressCount(shape)
        starts = [count.newcomer()]
        for _ in range(3):
            count.server_steps += 5
            count.aggregated()
            starts.append(count.newcomer())
        found[shape] = starts
    assert found == {"linear": [1, 6, 11, 16], "cumulative": [1, 6, 16, 31]}


@pytest.mark.parametrize(
    ("weight", "at_three"),
    [
        (ProgressWeight(), 3), (ProgressWeight("cumulative"), 3), (ProgressWeight("uniform"), 1),
        (ProgressWeight("poly", 2, 2), 18), (ProgressWeight("exp", 2, 0.5), 2 * np.exp(1.5)),
    ],
)  # fmt: skip
def test_progress_weights(weight: ProgressWeight, at_three: float) -> None:
    assert weight.of(3) == pytest.approx(at_three, rel=1e-12)
    for key, value in {"shape": "cubic", "scale": 0.0, "growth": -1.0}.items():
        with pytest.raises(ConfigError, match=rf"progress_weight\.{key}="):
            ProgressWeight(**{key: value})  # type: ignore[arg-type]
