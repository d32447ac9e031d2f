"""Secrets of secure aggregation: keys that two clients agree on in public, shares of a secret, masks from a seed.

W. Diffie, M. Hellman, "New Directions in Cryptography", 1976, in the 2048-bit group of RFC 3526; A. Shamir, "How to
Share a Secret", 1979, in the field of 2^521 - 1. A simulation: secrets follow from the seed of the run, and masks come
from Philox, which is no cryptographic generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

GROUP = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B"
    "302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7EDEE386BFB5A899FA5AE9F24117C4B1FE6"
    "49286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB9ED529077096966D"
    "670C354E4ABC9804F1746C08CA18217C32905E462E36CE3BE39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718"
    "3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF",
    16,
)
GENERATOR = 2
FIELD = 2**521 - 1
SECRET_BYTES = 32
KEY_BYTES = (GROUP.bit_length() + 7) // 8
SHARE_BYTES = (FIELD.bit_length() + 7) // 8


def draw_secret(draws: np.random.Generator) -> int:
    """256 bits."""
    return int.from_bytes(draws.bytes(SECRET_BYTES), "little")


def public_key(secret: int) -> int:
    """What may be known of a secret."""
    return pow(GENERATOR, secret, GROUP)


def agreed(secret: int, other_public: int) -> int:
    """128-bit seed that the owner of the other key finds too, and nobody else."""
    return digest(pow(other_public, secret, GROUP))


def digest(secret: int) -> int:
    """128-bit seed that follows from a secret."""
    text = secret.to_bytes(KEY_BYTES, "little")
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def mask(seed: int, numbers: int) -> np.ndarray:
    """So many whole numbers below 2^32, (numbers,) uint32."""
    draws = np.random.Generator(np.random.Philox(key=seed))
    return draws.integers(0, 2**32, numbers, dtype=np.uint32)


def share_out(secret: int, count: int, threshold: int, draws: np.random.Generator) -> list[int]:
    """Shares of a secret for holders 1 .. count, of which any `threshold` give it back, and fewer give nothing."""
    polynomial = [secret, *(int.from_bytes(draws.bytes(SHARE_BYTES), "little") % FIELD for _ in range(threshold - 1))]
    shares = []
    for place in range(1, count + 1):
        value = 0
        for coefficient in reversed(polynomial):
            value = (value * place + coefficient) % FIELD
        shares.append(value)
    return shares


def put_back(shares: Mapping[int, int]) -> int:
    """The secret out of the shares of these holders (counted from 1): the polynomial's value at 0."""
    secret = 0
    for place, share in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != place:
                above = above * other % FIELD
                below = below * (other - place) % FIELD
        secret += share * above * pow(below, -1, FIELD)
    return secret % FIELD
