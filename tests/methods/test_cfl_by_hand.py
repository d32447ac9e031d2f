"""CFL: its box, and the rule for those who were away, carried out by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from lightning_sfl.core.state import State
from lightning_sfl.methods import CFL
from tests.methods.clusters import EXACT, Networks
from tests.tiny import build, fit, furthest, network, rows, sgd

SIZES = (8, 5, 9, 7, 6)


def flat(state: State) -> np.ndarray:
    """All parameters as one vector."""
    return np.concatenate([tensor.numpy().ravel() for name, tensor in state.items() if name in PARAMETERS])


PARAMETERS = [name for name, _ in network(norm=True).named_parameters()]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def parted(updates: dict[int, np.ndarray]) -> list[list[int]]:
    """The best of all bipartitions, the first client in the first part."""
    first, *rest = updates
    found = {}
    for size in range(len(rest)):
        for more in combinations(rest, size):
            own, others = [first, *more], [client for client in rest if client not in more]
            found[max(cosine(updates[i], updates[j]) for i in own for j in others)] = [own, others]
    return found[min(found)]


class ByHand:
    """What the box, and the rule for those who were away, make of what clients start from and hand in."""

    def __init__(self, start: State, eps: float) -> None:
        self.networks, self.eps, self.where = [start], eps, dict.fromkeys(range(len(SIZES)), 0)
        self.met: dict[int, dict[int, tuple[np.ndarray, int]]] = {}
        self.seen = {"divided": 0, "joined": 0}

    def round(self, ends: dict[int, State]) -> None:
        of = {cluster: [k for k in ends if self.where[k] == cluster] for cluster in range(len(self.networks))}
        for cluster, members in of.items():
            start = flat(self.networks[cluster])
            updates = {client: flat(ends[client]) - start for client in members}
            if cluster in self.met:
                for client, update in updates.items():
                    self.where[client] = max(self.met[cluster].values(), key=lambda each: cosine(update, each[0]))[1]
                    self.seen["joined"] += 1
            elif members:
                self.merge(cluster, updates, ends)

    def merge(self, cluster: int, updates: dict[int, np.ndarray], ends: dict[int, State]) -> None:
        total = sum(SIZES[client] for client in updates)
        mean = sum(SIZES[client] / total * update for client, update in updates.items())
        groups = {cluster: [*updates]}
        if np.linalg.norm(mean) < self.eps < max(map(np.linalg.norm, updates.values())):
            groups = dict(enumerate(parted(updates), start=len(self.networks)))
            self.networks += [self.networks[cluster], self.networks[cluster]]
            self.met[cluster] = {k: (updates[k], part) for part, group in groups.items() for k in group}
            self.where |= {client: part for part, group in groups.items() for client in group}
            self.seen["divided"] += 1
        for part, group in groups.items():
            total = sum(SIZES[client] for client in group)
            average = {n: sum(SIZES[k] / total * ends[k][n] for k in group) for n in ends[group[0]] if "num_" not in n}
            self.networks[part] = average  # type: ignore[assignment]


def test_rounds_by_hand() -> None:
    data, seen = rows(SIZES, dtype=EXACT), Networks()
    net = network(norm=True, dtype=EXACT)
    options = {"participants": 4, "batch_size": 4, "eps1": 0.3, "eps2": 0.3, "client_optimizer": sgd(0.1, 0.9)}
    method = build(CFL, net, **options)
    hand = ByHand(dict(network(norm=True, dtype=EXACT).state_dict()), 0.3)
    fit(method, data, 12, [seen])
    assert isinstance(method, CFL)
    for index in range(12):
        for client, start in ((k, start) for number, k, start in seen.whole_starts if number == index):
            assert furthest(*both(start, hand.networks[hand.where[client]])) < 1e-13
        hand.round({client: end for number, client, end in seen.whole_ends if number == index})
        for mine, theirs in zip(hand.networks, seen.networks[index + 1], strict=True):
            assert not theirs or furthest(*both(mine, theirs)) < 1e-13
        ends = [cluster for cluster in range(len(hand.networks)) if cluster not in hand.met]
        waiting = sum(cluster in hand.met for cluster in hand.where.values())
        told = {name: value for name, value in seen.scalars[index].items() if "clients" not in name}
        assert (told["cluster/count"], told["cluster/waiting"]) == (len(ends), waiting)
    assert hand.seen["divided"] > 1
    assert hand.seen["joined"] > 1
    assert {client: method.cluster_of(client, ()) for client in hand.where} == hand.where


def both(one: State, other: State) -> tuple[State, State]:
    """Two states by the names that both have."""
    names = one.keys() & other.keys() - {name for name in one if "num_" in name}
    return {name: one[name] for name in names}, {name: other[name] for name in names}
