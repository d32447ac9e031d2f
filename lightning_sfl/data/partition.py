"""Ways of dealing the rows of a training set to clients: by size, by label proportions, by shards.

Only the label vector is looked at, and every draw comes from the generator that is handed in: one seed, one partition.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from typing_extensions import override

from lightning_sfl.core.errors import ConfigError, DataError, require

Parts = list[np.ndarray]


class Partition(ABC):
    """A rule that deals rows to clients; its public attributes are its options.

    A rule with `sees_held_out` is given every training row rather than those left after the validation split: its
    answer names rows by their number in the source, and the held-out ones are taken out afterwards.
    """

    sees_held_out = False

    @abstractmethod
    def split(
        self, labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, owner: np.ndarray | None = None
    ) -> Parts:
        """Disjoint int64 rows, ascending, one array a client; None as `num_clients`: as many as the data has owners."""


def counted(labels: np.ndarray, num_clients: int | None) -> int:
    """The number of clients, refused when it is left open or larger than the number of rows."""
    if num_clients is None:
        raise ConfigError("num_clients=None is not allowed: only Natural and FromFile know their own number")
    require(1 <= num_clients <= len(labels), "num_clients", num_clients, f"there are {len(labels)} rows to deal out")
    return num_clients


def rows_by_class(labels: np.ndarray, rng: np.random.Generator, rule: str) -> list[np.ndarray]:
    """The rows of each class that occurs, in ascending order of class, each shuffled."""
    if labels.ndim != 1:
        raise DataError(f"partition {rule} needs one label a row; for text use IID, Natural or QuantitySkew")
    return [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]


def proportional(total: int, shares: np.ndarray) -> np.ndarray:
    """Whole numbers that sum to `total`, each within one of its share of it."""
    edges = np.minimum(np.round(np.cumsum(shares) * total), total).astype(np.int64)
    edges[-1] = total
    return np.diff(edges, prepend=0)


def cut(rows: np.ndarray, sizes: np.ndarray) -> Parts:
    """Consecutive pieces of `rows` of these sizes."""
    return np.split(rows, np.cumsum(sizes)[:-1])


def gathered(pieces: list[Parts]) -> Parts:
    """Each client's rows, ascending, from its pieces."""
    return [np.sort(np.concatenate(own)).astype(np.int64) if own else np.empty(0, np.int64) for own in pieces]


class IID(Partition):
    """A uniform shuffle cut into equal parts: all rows (sizes differ by at most one), or `size` rows a client."""

    def __init__(self, size: int | None = None) -> None:
        require(size is None or size >= 1, "size", size, "1 or more, or null for equal shares of all rows")
        self.size = size

    @override
    def split(
        self, labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, owner: np.ndarray | None = None
    ) -> Parts:
        order = rng.permutation(len(labels))
        clients = counted(labels, num_clients)
        if self.size is not None:
            most = len(labels) // clients
            require(self.size <= most, "size", self.size, f"at most {most}: {len(labels)} rows for {clients} clients")
            order = order[: self.size * clients]
        return gathered([[part] for part in np.array_split(order, clients)])


class QuantitySkew(Partition):
    """Clients of one distribution but unlike size: sizes follow Dirichlet(alpha); every row is used, none is empty."""

    def __init__(self, alpha: float = 1.0) -> None:
        require(0 < alpha < math.inf, "alpha", alpha, "a positive finite number")
        self.alpha = alpha

    @override
    def split(
        self, labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, owner: np.ndarray | None = None
    ) -> Parts:
        clients = counted(labels, num_clients)
        shares = rng.dirichlet(np.full(clients, self.alpha))
        # One row each comes first, so that a share near nothing still leaves a client that can train.
        sizes = 1 + proportional(len(labels) - clients, shares)
        return gathered([[part] for part in cut(rng.permutation(len(labels)), sizes)])


class Dirichlet(Partition):
    """Each class is divided over all clients in proportions drawn from Dirichlet(alpha); every row is used.

    The draw is repeated until every client has `min_size` rows. A small alpha gives clients of few classes and unlike
    size, a large one approaches IID (Hsu et al., arXiv 1909.06335). With `min_size=0` clients may be empty.
    """

    def __init__(self, alpha: float = 0.3, min_size: int = 1, max_tries: int = 10_000) -> None:
        require(0 < alpha < math.inf, "alpha", alpha, "a positive finite number")
        require(min_size >= 0, "min_size", min_size, "0 or more")
        require(max_tries >= 1, "max_tries", max_tries, "1 or more")
        self.alpha, self.min_size, self.max_tries = alpha, min_size, max_tries

    @override
    def split(
        self, labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, owner: np.ndarray | None = None
    ) -> Parts:
        classes = rows_by_class(labels, rng, "Dirichlet")
        sizes = self._sizes([len(rows) for rows in classes], counted(labels, num_clients), rng)
        pieces = [cut(rows, row_sizes) for rows, row_sizes in zip(classes, sizes, strict=True)]
        return gathered([list(own) for own in zip(*pieces, strict=True)])

    def _sizes(self, class_sizes: list[int], clients: int, rng: np.random.Generator) -> np.ndarray:
        """(classes, clients) row counts; drawn before any row is moved, so that a retry costs microseconds."""
        too_few = f"{sum(class_sizes)} rows over {clients} clients"
        require(self.min_size * clients <= sum(class_sizes), "min_size", self.min_size, f"too large for {too_few}")
        for _ in range(self.max_tries):
            shares = rng.dirichlet(np.full(clients, self.alpha), size=len(class_sizes))
            sizes = np.stack([proportional(n, row) for n, row in zip(class_sizes, shares, strict=True)])
            if sizes.sum(axis=0).min() >= self.min_size:
                return sizes
        raise DataError(
            f"Dirichlet(alpha={self.alpha}): no draw of {self.max_tries} gave every client min_size={self.min_size} "
            f"rows ({too_few}); raise alpha, or lower min_size or num_clients"
        )


class Shards(Partition):
    """Rows sorted by label, cut into `per_client` equal shards a client, dealt at random; every row is used.

    The non-IID split of McMahan et al. (arXiv 1602.05629) with two shards a client; a client sees at most
    `per_client` classes where classes are larger than shards and shards do not straddle classes.
    """

    def __init__(self, per_client: int = 2) -> None:
        require(per_client >= 1, "per_client", per_client, "1 or more")
        self.per_client = per_client

    @override
    def split(
        self, labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, owner: np.ndarray | None = None
    ) -> Parts:
        clients = counted(labels, num_clients)
        num_shards = clients * self.per_client
        require(num_shards <= len(labels), "per_client", self.per_client, f"{num_shards} shards of {len(labels)} rows")
        shards = np.array_split(np.concatenate(rows_by_class(labels, rng, "Shards")), num_shards)
        dealt = rng.permutation(num_shards).reshape(clients, self.per_client)
        return gathered([[shards[s] for s in own] for own in dealt])
