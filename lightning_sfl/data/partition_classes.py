"""Partitions in which a client holds a few classes, or mostly one."""

from __future__ import annotations

import math

import numpy as np
from typing_extensions import override

from lightning_sfl.core.errors import DataError, require
from lightning_sfl.data.partition import Partition, Parts, counted, cut, gathered, proportional, rows_by_class


class Pathological(Partition):
    """Exactly `classes_per_client` classes a client; every row is used.

    Each class goes to equally many clients, give or take one, and is divided evenly over them. Which classes meet in
    a client is random.
    """

    def __init__(self, classes_per_client: int = 2) -> None:
        require(classes_per_client >= 1, "classes_per_client", classes_per_client, "1 or more")
        self.classes_per_client = classes_per_client

    @override
    def split(
        self, labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, owner: np.ndarray | None = None
    ) -> Parts:
        clients = counted(labels, num_clients)
        classes = rows_by_class(labels, rng, "Pathological")
        holders = self._holders(clients, len(classes), rng)
        pieces: list[Parts] = [[] for _ in range(clients)]
        for rows, own in zip(classes, holders, strict=True):
            if len(rows) < len(own):
                text = f"Pathological: a class has {len(rows)} rows for {len(own)} clients; lower num_clients"
                raise DataError(text)
            for client, part in zip(own, np.array_split(rows, len(own)), strict=True):
                pieces[client].append(part)
        return gathered(pieces)

    def _holders(self, clients: int, num_classes: int, rng: np.random.Generator) -> list[list[int]]:
        """The clients of each class: a client takes the classes taken least so far, ties at random."""
        k = self.classes_per_client
        require(k <= num_classes, "classes_per_client", k, f"the data has {num_classes} classes")
        enough = f"{clients} clients must cover {num_classes} classes"
        require(k * clients >= num_classes, "classes_per_client", k, enough)
        holders: list[list[int]] = [[] for _ in range(num_classes)]
        for client in range(clients):
            taken = np.array([len(own) for own in holders])
            for c in np.lexsort((rng.random(num_classes), taken))[:k]:
                holders[c].append(client)
        return holders


class ShardDirichlet(Partition):
    """`labels_per_client` classes a client, each class divided over its holders in Dirichlet(alpha) proportions.

    Classes are dealt from a shuffled pool that holds each equally often; a class dealt twice to one client is replaced
    by the smallest one it lacks. Deal and proportions are drawn again until every client has `min_size` rows; with
    `min_size=0` a client left empty is given one row of the largest. Rows of a class that nobody was dealt stay unused.
    """

    def __init__(
        self, alpha: float = 0.3, labels_per_client: int = 2, min_size: int = 10, max_tries: int = 10_000
    ) -> None:
        require(0 < alpha < math.inf, "alpha", alpha, "a positive finite number")
        require(labels_per_client >= 1, "labels_per_client", labels_per_client, "1 or more")
        require(min_size >= 0, "min_size", min_size, "0 or more")
        require(max_tries >= 1, "max_tries", max_tries, "1 or more")
        self.alpha, self.labels_per_client = alpha, labels_per_client
        self.min_size, self.max_tries = min_size, max_tries

    @override
    def split(
        self, labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, owner: np.ndarray | None = None
    ) -> Parts:
        clients = counted(labels, num_clients)
        classes = rows_by_class(labels, rng, "ShardDirichlet")
        k = self.labels_per_client
        require(k <= len(classes), "labels_per_client", k, f"the data has {len(classes)} classes")
        for _ in range(self.max_tries):
            sizes = self._sizes([len(rows) for rows in classes], self._deal(clients, len(classes), rng), rng)
            if sizes.sum(axis=0).min() >= self.min_size:
                pieces = [cut(rows[: n.sum()], n) for rows, n in zip(classes, sizes, strict=True)]
                return lend_to_empty(gathered([list(own) for own in zip(*pieces, strict=True)]), rng)
        raise DataError(
            f"ShardDirichlet(alpha={self.alpha}): no draw of {self.max_tries} gave every client "
            f"min_size={self.min_size} rows ({len(labels)} rows over {clients} clients); lower min_size or num_clients"
        )

    def _deal(self, clients: int, num_classes: int, rng: np.random.Generator) -> np.ndarray:
        """(clients, classes) booleans: which classes each client holds, `labels_per_client` in every row."""
        k = self.labels_per_client
        each, rest = divmod(clients * k, num_classes)
        pool = np.concatenate([np.repeat(np.arange(num_classes), each), rng.choice(num_classes, rest, replace=False)])
        held = np.zeros((clients, num_classes), dtype=bool)
        for client, dealt in enumerate(rng.permutation(pool).reshape(clients, k)):
            held[client, dealt] = True
            held[client, np.flatnonzero(~held[client])[: k - held[client].sum()]] = True
        return held

    def _sizes(self, class_sizes: list[int], held: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(classes, clients) row counts, zero outside the holders of a class."""
        sizes = np.zeros(held.T.shape, dtype=np.int64)
        for c, total in enumerate(class_sizes):
            own = np.flatnonzero(held[:, c])
            if len(own):
                sizes[c, own] = proportional(total, rng.dirichlet(np.full(len(own), self.alpha)))
        return sizes


def lend_to_empty(parts: Parts, rng: np.random.Generator) -> Parts:
    """Move one random row of the largest client to each empty one."""
    for i in [i for i, rows in enumerate(parts) if not len(rows)]:
        largest = max(range(len(parts)), key=lambda j: len(parts[j]))
        at = int(rng.integers(len(parts[largest])))
        parts[i], parts[largest] = parts[largest][at : at + 1], np.delete(parts[largest], at)
    return parts


class MainClass(Partition):
    """A share `q` of each client's rows comes from its main class (client i: class i mod C), the rest from all classes.

    The rest is drawn in the proportions of the whole set, so that q=0 is IID and q=1 leaves one class a client. All
    clients are equally large, as large as the scarcest main class allows; rows beyond that stay unused.
    The "non-IID ratio" of MiniBatch-SFL (arXiv 2308.11953).
    """

    def __init__(self, q: float = 0.5) -> None:
        require(0 <= q <= 1, "q", q, "a share from 0 to 1")
        self.q = q

    @override
    def split(
        self, labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, owner: np.ndarray | None = None
    ) -> Parts:
        clients = counted(labels, num_clients)
        classes = rows_by_class(labels, rng, "MainClass")
        class_sizes = np.array([len(rows) for rows in classes])
        mains = np.arange(clients) % len(classes)
        size = self._size(class_sizes, np.bincount(mains, minlength=len(classes)), clients)
        main = int(self.q * size + 1e-9)
        pieces: list[Parts] = [[classes[c][(i // len(classes)) * main :][:main]] for i, c in enumerate(mains)]
        taken = np.bincount(mains, minlength=len(classes)) * main
        left = [rows[n:] for rows, n in zip(classes, taken, strict=True)]
        rest = self._rest(left, class_sizes, (size - main) * clients)
        for own, part in zip(pieces, np.array_split(rng.permutation(rest), clients), strict=True):
            own.append(part)
        return gathered(pieces)

    def _size(self, class_sizes: np.ndarray, num_mains: np.ndarray, clients: int) -> int:
        """Rows a client: the most at which no class is asked for more rows than it has."""
        demand = num_mains * self.q + clients * (1 - self.q) * class_sizes / class_sizes.sum()
        size = min(int((class_sizes / np.maximum(demand, 1e-12)).min() + 1e-9), int(class_sizes.sum()) // clients)
        if size < 1:
            raise DataError(f"MainClass(q={self.q}): a main class has fewer rows than clients; lower num_clients")
        return size

    def _rest(self, left: list[np.ndarray], class_sizes: np.ndarray, total: int) -> np.ndarray:
        """`total` rows in the proportions of the whole set; rounding is made up from the best supplied classes."""
        quota = np.floor(total * class_sizes / class_sizes.sum()).astype(np.int64)
        quota = np.minimum(quota, [len(rows) for rows in left])
        while (missing := total - quota.sum()) > 0:
            spare = np.array([len(rows) for rows in left]) - quota
            quota[np.argsort(-spare, kind="stable")[: min(missing, np.count_nonzero(spare))]] += 1
        return np.concatenate([rows[:n] for rows, n in zip(left, quota, strict=True)])
