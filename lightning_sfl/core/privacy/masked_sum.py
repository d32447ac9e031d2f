"""One round of secure aggregation among clients 0 .. n - 1: masks that cancel in the sum, and what drop-outs need.

K. Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4, without
its signatures and without the encryption of the shares on their way through the server.

    each client i:  secret s_i, public key g^s_i; secret b_i; shares of both for all others
    y_i <- q_i + PRG(b_i) + sum_{j > i} PRG(g^(s_i s_j)) - sum_{j < i} PRG(g^(s_i s_j))   mod 2^32
    server:  sum of the y_i that come; from t who are left the shares of b_i of those who came and of s_j of the others
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_sfl.core.privacy.secrets import agreed, digest, draw_secret, mask, public_key, put_back, share_out


class MaskedSum:
    """Keys and shares of a round; then what each client sends, and what the server makes of it.

    Args:
        draws: a stream for each client.
        threshold: clients whose shares give a secret back.
        numbers: length of the vectors that are added up.
    """

    def __init__(self, draws: Sequence[np.random.Generator], threshold: int, numbers: int) -> None:
        self.count, self.threshold, self.numbers = len(draws), threshold, numbers
        self.secrets = [draw_secret(own) for own in draws]
        self.own_secrets = [draw_secret(own) for own in draws]
        self.public = [public_key(secret) for secret in self.secrets]
        # shares[i][j]: of client i's secret, held by client j
        self.shares = [share_out(s, self.count, threshold, own) for s, own in zip(self.secrets, draws, strict=True)]
        self.own_shares = [
            share_out(s, self.count, threshold, own) for s, own in zip(self.own_secrets, draws, strict=True)
        ]

    def pair_mask(self, secret: int, owner: int, other: int) -> np.ndarray:
        """What the owner of this secret adds for another client; that client adds the opposite."""
        found = mask(agreed(secret, self.public[other]), self.numbers)
        return found if owner < other else np.negative(found)

    def pair_masks(self, client: int) -> np.ndarray:
        """The sum of a client's masks with all others, mod 2^32."""
        total = np.zeros(self.numbers, dtype=np.uint32)
        for other in range(self.count):
            if other != client:
                total += self.pair_mask(self.secrets[client], client, other)
        return total

    def masked(self, client: int, vector: np.ndarray) -> np.ndarray:
        """What a client sends instead of its vector (numbers,) of uint32."""
        own = mask(digest(self.own_secrets[client]), self.numbers)
        total: np.ndarray = vector + own + self.pair_masks(client)
        return total

    def unmasked(self, received: dict[int, np.ndarray]) -> np.ndarray:
        """The server: the sum of the vectors of those who sent, mod 2^32, from what `threshold` of them reveal."""
        helpers = sorted(received)[: self.threshold]
        total = np.zeros(self.numbers, dtype=np.uint32)
        for vector in received.values():
            total += vector
        for client in range(self.count):
            shares = self.own_shares[client] if client in received else self.shares[client]
            secret = put_back({helper + 1: shares[helper] for helper in helpers})
            if client in received:
                total -= mask(digest(secret), self.numbers)
            else:
                for other in received:  # what the one who is gone would have added
                    total += self.pair_mask(secret, client, other)
        return total
