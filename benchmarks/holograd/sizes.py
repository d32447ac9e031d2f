"""How large the experiments are. `tiny` decides the claims in minutes; `quick` only shows that everything runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Seeds and tasks are given beside these."""

    gradients: int = 50  # of E1
    batch_sizes: tuple[int, ...] = (1, 4, 16, 64)
    train_steps: int = 600  # to the end of training in E1
    counts: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)  # K of E2
    trials: int = 20  # estimates per K
    sweep_steps: int = 100  # of training in E2
    steps: int = 150  # of training in E3
    planted_steps: int = 200
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    subspace_ranks: tuple[int, ...] = (8, 32)  # on the real network
    subspace_steps: int = 120
    repeats: tuple[int, ...] = (100, 1000)  # T of E5
    proofs: int = 2000  # of E6
    clients: int = 20
    robust_steps: int = 40
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3)


SIZES = {
    "quick": Sizes(
        gradients=8, batch_sizes=(1, 16), train_steps=20, counts=(8, 32), trials=4, sweep_steps=10, steps=40,
        planted_steps=20, ranks=(8,), subspace_ranks=(8,), subspace_steps=10, repeats=(10, 20), proofs=200, clients=10,
        robust_steps=3, fractions=(0.2,),
    ),
    "tiny": Sizes(),
    "small": Sizes(
        gradients=100, batch_sizes=(1, 4, 16, 64, 256), train_steps=5000, counts=(8, 16, 32, 64, 128, 256, 512, 1024),
        trials=50, sweep_steps=1000, steps=3000, planted_steps=2000, subspace_ranks=(8, 16, 32, 64),
        subspace_steps=1000, repeats=(100, 1000, 10_000), proofs=20_000, robust_steps=400,
    ),
}  # fmt: skip
