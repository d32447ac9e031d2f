"""FedAvg: every client trains the whole network on its own data, and the networks are averaged.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, Algorithm 1.

    each client k:  w_k <- w;  E epochs of mini-batch SGD on its own rows
    w <- sum_k (n_k / n) w_k
"""

from __future__ import annotations

from lightning_sfl.methods.whole import WholeMethod


class FedAvg(WholeMethod):
    """Clients hold both halves; the cut layer only says where diagnostics divide the network."""

    name = "fedavg"
