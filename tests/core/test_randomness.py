"""Streams: one key, one stream; any other key, another; and torch's global generator comes back as it was."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_sfl.core.randomness import key_of, seed_torch, stream, untouched_generators

CPU = torch.device("cpu")
BASE = {"seed": 3, "purpose": "batches", "round": 5, "client": 7, "step": 1}


def first(**key: object) -> tuple[int, ...]:
    return tuple(stream(**{**BASE, **key}).integers(0, 2**62, 3).tolist())  # type: ignore[arg-type]


def test_one_key_gives_one_stream_whatever_was_drawn_between() -> None:
    wanted = first()
    first(client=8)
    assert first() == wanted


@pytest.mark.parametrize("field", ["seed", "round", "client", "step"])
@pytest.mark.parametrize("bit", [0, 31, 32, 40, 62])
def test_every_bit_of_every_number_counts(field: str, bit: int) -> None:
    changed = int(BASE[field]) ^ 1 << bit  # type: ignore[call-overload]
    assert first(**{field: changed}) != first()
    assert dropout_under(**{field: changed}) != dropout_under()


def dropout_under(**key: object) -> list[float]:
    with untouched_generators(CPU):
        seed_torch(**{**BASE, **key}, device=CPU)  # type: ignore[arg-type]
        return torch.rand(4).tolist()


def test_fields_cannot_run_into_each_other() -> None:
    numbers = [0, 1, 11, 111]
    keys = {key_of(*numbers_and) for numbers_and in itertools.product(numbers, ["a", "a|1"], numbers, numbers, numbers)}
    # ("a", 1, ...) and ("a|1", ...) differ in how many separators follow, so all texts are distinct.
    assert len(keys) == 2 * 4**4
    assert all(0 <= key < 2**128 for key in keys)


def test_ten_thousand_streams_start_differently() -> None:
    starts = {stream(0, "batches", r, c).integers(0, 2**63) for r in range(100) for c in range(100)}
    assert len(starts) == 10_000


def test_generator_is_given_back_even_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), untouched_generators(CPU):
        seed_torch(0, "client", 0, 0, 0, CPU)
        torch.rand(5)
        1 / 0
    assert torch.equal(torch.get_rng_state(), before)
