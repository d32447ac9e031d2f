"""Directions and the seeds they are drawn from: invariants 1, 2 and 13."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_sfl.core.holograd.basis import Basis, BasisChoice
from lightning_sfl.core.holograd.commitment import Commitment, base_of, hash_batch, hash_tensors
from lightning_sfl.core.holograd.directions import Directions, draw, orthonormal_rows
from lightning_sfl.core.holograd.projection import project_gradients
from lightning_sfl.core.holograd.replay import commit
from tests.holograd.made import EMPTY, commitment, no_basis, normal, sets


def vectors(directions: Directions) -> torch.Tensor:
    return torch.cat([block for _, block in directions.blocks()])


def test_same_seed_same_vector_of_length_one() -> None:
    seeds = commitment().seeds(3, 5)
    one, other = (vectors(Directions(seeds, no_basis(501))) for _ in range(2))
    assert torch.equal(one, other)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-14)
    single = vectors(Directions(seeds, no_basis(501).float())).norm(dim=1)
    torch.testing.assert_close(single, torch.ones(5), rtol=0, atol=1e-6)


def test_seeds_that_share_a_text_prefix_give_other_directions() -> None:
    """The reference took the first 8 bytes of texts such as these, and all of a step got the same vector."""
    texts = [f"step12_k{j}".encode() for j in range(10)] + [f"step3_worker7_{i}".encode() for i in range(10)]
    assert len({text[:6] for text in texts}) == 2
    rows = vectors(Directions([hashlib.sha256(text).digest() for text in texts], no_basis(2000)))
    gram = rows @ rows.T - torch.eye(20, dtype=torch.float64)
    assert gram.abs().max() < 6 / 2000**0.5


@pytest.mark.parametrize("byte", [0, 7, 8, 15, 16, 23, 24, 31])
@pytest.mark.parametrize("bit", [0, 7])
def test_every_bit_of_a_seed_counts(byte: int, bit: int) -> None:
    """torch's own generator looks at 32 bits; seeds with a common prefix of 8 bytes are among these."""
    seed = hashlib.sha256(b"a").digest()
    other = bytearray(seed)
    other[byte] ^= 1 << bit
    one, two = draw(seed, 4000), draw(bytes(other), 4000)
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / 4000**0.5


def test_the_stream_is_the_one_on_record() -> None:
    """Another NumPy, or another machine, must draw the same numbers: replicas and verifiers depend on it."""
    digest = hashlib.sha256(draw(bytes(range(32)), 100_000).astype("<f4").tobytes()).hexdigest()
    assert digest[:16] == "6482d8a1ecbdf6d8"


def test_second_moment_is_isotropic() -> None:
    size, trials = 6, 20_000
    rows = vectors(next(sets(1, trials, no_basis(size))))
    moment = rows.T @ rows / trials
    error = (2 / (size * (size + 2)) / trials) ** 0.5  # sd of v_i^2 is about this, that of v_i v_j smaller
    assert (moment - torch.eye(size, dtype=torch.float64) / size).abs().max() < 5 * error
    assert rows.mean(0).abs().max() < 5 / (size * trials) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_many_orthonormal_directions_as_dimensions_give_the_gradient(dtype: torch.dtype) -> None:
    gradient = normal(1, 300).to(dtype)
    directions = next(sets(1, 300, no_basis(300).to(dtype), "orthogonal"))
    estimate = directions.combine(directions.project(gradient)[0])
    assert (estimate - gradient[0]).norm() / gradient.norm() < 1e-5 * (1 if dtype == torch.float32 else 1e-8)


def test_scalars_are_linear_in_the_gradient() -> None:
    one, other = normal(1, 400, seed=1), normal(1, 400, seed=2)
    directions = next(sets(1, 30, no_basis(400)))
    assert torch.equal(directions.project(2 * one), 2 * directions.project(one))
    joint = directions.project(one + 3 * other)
    torch.testing.assert_close(joint, directions.project(one) + 3 * directions.project(other), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["random", "orthogonal"])
def test_directions_lie_outside_the_basis(kind: str) -> None:
    basis = orthonormal_rows(normal(4, 90))
    rows = vectors(Directions(commitment().seeds(0, 20), basis, kind))  # type: ignore[arg-type]
    assert (rows @ basis.T).abs().max() < 1e-14
    assert len(rows) == 20


def test_blocks_change_nothing_but_the_order_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, seeds = normal(3, 100), commitment().seeds(0, 17)
    whole = Directions(seeds, no_basis(100))
    scalars, combined = whole.project(gradients), whole.combine(torch.arange(17.0, dtype=torch.float64))
    monkeypatch.setattr(Directions.blocks, "__defaults__", (300,))
    small = Directions(seeds, no_basis(100))
    assert [len(block) for _, block in small.blocks()] == [3, 3, 3, 3, 3, 2]
    torch.testing.assert_close(small.project(gradients), scalars, rtol=0, atol=1e-13)
    torch.testing.assert_close(small.combine(torch.arange(17.0, dtype=torch.float64)), combined, rtol=0, atol=1e-12)


# --- commitments ------------------------------------------------------------------------------------------------------


def test_a_seed_is_the_digest_of_its_fields_in_order() -> None:
    made = Commitment(b"s" * 32, b"t" * 32, b"b" * 32, b"u" * 32)
    fields = b"s" * 32 + b"t" * 32 + b"b" * 32 + b"u" * 32 + bytes([0] * 7 + [5]) + bytes([0, 0, 1, 2])
    assert made.seed(5, 258) == hashlib.sha256(fields).digest()


def test_whatever_changes_changes_the_seed() -> None:
    made = Commitment(base_of(0, "run"), EMPTY, EMPTY)
    others = [
        replace(made, base=base_of(1, "run")), replace(made, base=base_of(0, "other")), replace(made, state=b"1" * 32),
        replace(made, batch=b"1" * 32), replace(made, basis=EMPTY),
    ]  # fmt: skip
    seeds = {made.seed(0, 0), made.seed(1, 0), made.seed(0, 1), made.seed(256, 0), *(o.seed(0, 0) for o in others)}
    assert len(seeds) == 4 + len(others)


def test_any_bit_of_the_parameters_counts() -> None:
    weights = normal(40, 50).float()
    before = hash_tensors([("w", weights), ("b", weights[0])])
    assert hash_tensors([("b", weights[0]), ("w", weights)]) == before
    bits = weights.view(torch.int32)
    for index in (0, 777, 1999):
        bits.view(-1)[index] ^= 1
        assert hash_tensors([("w", weights), ("b", weights[0])]) != before
        bits.view(-1)[index] ^= 1
    assert hash_tensors([("w", weights), ("c", weights[0])]) != before
    assert hash_tensors([("w", weights.T.contiguous()), ("b", weights[0])]) != before


def test_batches_are_told_apart() -> None:
    rows = np.arange(10)
    digests = {
        hash_batch(rows),
        hash_batch(rows[::-1]),
        hash_batch(rows, 1),
        hash_batch(rows[:9]),
        hash_batch(rows + 1),
    }
    assert len(digests) == 5
    assert hash_batch(np.array([2, 1]), 3) == hashlib.sha256(b"".join(n.to_bytes(8, "big") for n in (2, 1, 3))).digest()


def test_all_entries_of_a_basis_are_bound() -> None:
    """The reference hashed a sample of 10,000 entries; and no client has a say in its direction."""
    size = 20_000
    like = torch.zeros(size)
    basis = Basis(BasisChoice("subspace", rank=2), commitment().seeds(0, 2), like)
    named = [("w", torch.nn.Parameter(torch.zeros(3)))]
    seen = {commit(EMPTY, named, basis, EMPTY).seed(0, 0)}
    for index in (0, 12_345, 2 * size - 1):
        basis.rows.view(-1)[index] += 1e-6
        seen.add(commit(EMPTY, named, basis, EMPTY).seed(0, 0))
    assert len(seen) == 4


def test_coordinates_come_before_scalars() -> None:
    basis, gradients = orthonormal_rows(normal(3, 50)), normal(2, 50, seed=5)
    directions = Directions(commitment().seeds(0, 7), basis)
    found = project_gradients(gradients, directions)
    assert found.shape == (2, 10)
    torch.testing.assert_close(found[:, :3], gradients @ basis.T)
    torch.testing.assert_close(found[:, 3:], gradients @ vectors(directions).T)
