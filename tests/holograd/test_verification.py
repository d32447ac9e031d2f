"""The verifier: invariant 14."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.holograd.commitment import Commitment, base_of, hash_batch, hash_tensors
from lightning_sfl.core.holograd.directions import Directions
from lightning_sfl.core.holograd.verification import Check, Verifier, detection_probability, least_stake

SIZE, COUNT = 5000, 64
THETA = torch.linspace(-1, 1, SIZE)
INPUTS = torch.randn(40, SIZE, generator=torch.Generator().manual_seed(0))


def scalars(theta: torch.Tensor, rows: list[int], batch: bytes | None = None, base: int = 0) -> torch.Tensor:
    """What a worker sends for the mean of (x'theta - 1)^2 / 2 over these rows."""
    own = Commitment(base_of(base, "run"), hash_tensors([("w", theta)]), batch or hash_batch(np.array(rows)))
    gradient = (INPUTS[rows] @ theta - 1) @ INPUTS[rows] / len(rows)
    return Directions(own.seeds(0, COUNT), torch.zeros(0, SIZE)).project(gradient[None])[0]


ROWS = list(range(10))
HONEST = scalars(THETA, ROWS)
LIES = {
    "zeros": torch.zeros(COUNT),
    "another seed": scalars(THETA, ROWS, base=1),
    "stale parameters": scalars(THETA + 1e-3 * torch.sin(torch.arange(SIZE)), ROWS),
    "another batch": scalars(THETA, list(range(10, 20))),
    "another batch under the right seed": scalars(THETA, list(range(10, 20)), hash_batch(np.array(ROWS))),
    "one per mille too much": HONEST * 1.001,
    "not finite": HONEST * float("nan"),
}


def check(sent: torch.Tensor, own: torch.Tensor) -> Check:
    return Verifier(1.0).compare(sent, own, COUNT)


def test_honest_scalars_pass_though_computed_in_another_way() -> None:
    own = Commitment(base_of(0, "run"), hash_tensors([("w", THETA)]), hash_batch(np.array(ROWS)))
    gradient = (INPUTS[ROWS].double() @ THETA.double() - 1) @ INPUTS[ROWS].double() / len(ROWS)
    double = Directions(own.seeds(0, COUNT), torch.zeros(0, SIZE).double()).project(gradient[None])[0]
    found = check(HONEST, double)
    assert found.checked == COUNT
    assert found.rejected == 0
    assert 0 < found.largest < 1e-5


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(lie: str) -> None:
    assert check(LIES[lie], HONEST).rejected > 0.9 * COUNT


def test_no_gradient_is_too_small_for_zeros_to_pass() -> None:
    """With an absolute tolerance of 1e-4 zeros would pass here."""
    assert (1e-6 * HONEST).abs().max() < 1e-4
    assert check(LIES["zeros"], 1e-6 * HONEST).rejected > 0.9 * COUNT
    assert check(1e-6 * HONEST, 1e-6 * HONEST).rejected == 0
    assert check(LIES["zeros"], LIES["zeros"]).rejected == 0
    assert check(HONEST, LIES["zeros"]).rejected == COUNT


def test_what_is_checked_follows_from_the_verifiers_own_seed() -> None:
    verifier = Verifier(0.3, seed=4)
    chosen = verifier.chosen(2, 5, COUNT)
    assert np.array_equal(chosen, Verifier(0.3, seed=4).chosen(2, 5, COUNT))
    assert not np.array_equal(chosen, verifier.chosen(3, 5, COUNT))
    assert not np.array_equal(chosen, Verifier(0.3, seed=5).chosen(2, 5, COUNT))
    assert len(Verifier(0.0).chosen(0, 0, COUNT)) == 0
    assert len(Verifier(1.0).chosen(0, 0, COUNT)) == COUNT


@pytest.mark.parametrize(("probability", "count", "expected"), [(0.0, 64, 16), (1.0, 64, 64), (0.0, 5, 5)])
def test_the_scale_has_sixteen_probes_where_there_are_as_many(probability: float, count: int, expected: int) -> None:
    verifier = Verifier(probability)
    chosen = verifier.chosen(0, 0, count)
    probes = verifier.probes(chosen, count)
    assert len(probes) == len(set(probes.tolist())) == expected
    assert probes[: len(chosen)].tolist() == chosen.tolist()


@pytest.mark.parametrize(("p", "q"), [(0.05, 0.2), (0.05, 0.1), (0.2, 0.05)])
def test_detection_rate(p: float, q: float) -> None:
    """1 - (1 - p)^(q m) with the real number of invalid proofs."""
    invalid, trials = round(q * COUNT), 4000
    verifier = Verifier(p)
    caught = sum(bool((verifier.chosen(t, 0, COUNT) < invalid).any()) for t in range(trials)) / trials
    wanted = detection_probability(p, invalid)
    assert abs(caught - wanted) < 4 * (wanted * (1 - wanted) / trials) ** 0.5


def test_numbers_of_the_paper() -> None:
    assert detection_probability(0.05, 0.2 * 64) == pytest.approx(0.48, abs=0.005)
    assert least_stake(0.05, 0.2 * 64) == pytest.approx(13.8, abs=0.1)
    assert least_stake(0.05, 0.1 * 64) == pytest.approx(16.5, abs=0.1)
    assert least_stake(0.01, 0.2 * 64) == pytest.approx(93, abs=1)
    assert least_stake(0.05, 1) == pytest.approx(19)


def test_what_cannot_work_is_refused() -> None:
    for options in ({"probability": 1.1}, {"probability": float("nan")}, {"tolerance": 0.0}):
        with pytest.raises(ConfigError):
            Verifier(**options)
    assert replace(Check(1, 0, 0.0), rejected=1) == Check(1, 1, 0.0)
