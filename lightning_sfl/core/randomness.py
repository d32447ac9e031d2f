"""Random streams keyed on what they are for, so that no draw depends on the order of execution.

Every draw of a run comes from the key (seed, purpose, round, client, step). Two methods with the same seed therefore
see the same participants and batches, a resumed run needs no saved generator, and the number of processes does not
matter. NumPy's Philox takes the whole 128-bit hash of the key; torch's CPU generator would look at the low 32 bits
only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def key_of(seed: int, purpose: str, round: int = 0, client: int = 0, step: int = 0) -> int:
    """128-bit integer that stands for the whole key."""
    text = f"{seed}|{purpose}|{round}|{client}|{step}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def stream(seed: int, purpose: str, round: int = 0, client: int = 0, step: int = 0) -> np.random.Generator:
    """Generator for draws on the host: participants, permutations, partitions."""
    return np.random.Generator(np.random.Philox(key=key_of(seed, purpose, round, client, step)))


def seed_torch(seed: int, purpose: str, round: int, client: int, step: int, device: torch.device) -> None:
    """Point torch's global generator of `device` at the stream of this key; dropout and the like draw from there."""
    seed_generators(key_of(seed, purpose, round, client, step) & 0x7FFFFFFFFFFFFFFF, device)


def seed_generators(key: int, device: torch.device) -> None:
    """Seed the host's generator and that of `device`; torch.manual_seed would seed every card, which nobody undoes."""
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(key)


@contextmanager
def untouched_generators(*devices: torch.device) -> Iterator[None]:
    """Give torch's global generators back as they were: a round leaves no trace in them."""
    host = torch.default_generator.get_state()
    cards = {device: torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}
    try:
        yield
    finally:
        torch.default_generator.set_state(host)
        for device, state in cards.items():
            torch.cuda.set_rng_state(state, device)
