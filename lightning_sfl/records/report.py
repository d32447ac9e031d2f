"""What the watchers have to say about one round, collected before it is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from lightning_sfl.records.round_log import SCHEMA, Record

Value = float | int | bool
Picture = Sequence[Sequence[float]]
MOST_CLIENTS = 100  # of a matrix in the record: 100 take 32 kB


class RoundReport:
    """Scalars, per-client fields, vectors (for histograms) and matrices (for pictures) of one round.

    Only plain Python numbers are kept. Values that are not finite are dropped, and dropped scalars are counted in
    `<family>/n_skipped`, the family being what stands before the first slash of the tag.
    """

    def __init__(self, round: int) -> None:
        self.round = round
        self.vectors: dict[str, list[float]] = {}
        self.pictures: dict[str, Picture] = {}
        self.matrices: dict[str, Record] = {}
        self.schemes: set[str] = set()
        self._scalars: dict[str, Value] = {}
        self._clients: dict[str, dict[str, Value]] = {}
        self._population: dict[int, dict[str, Value]] = {}
        self._skipped: Counter[str] = Counter()

    def scalar(self, tag: str, value: Value) -> None:
        """One value of the round, e.g. `align/cos_pair_client`."""
        if math.isfinite(value):
            self._scalars[tag] = value
        else:
            self._skipped[f"{tag.split('/', 1)[0]}/n_skipped"] += 1

    def client(self, key: str | int, field: str, value: Value) -> None:
        """One value of one client; `key` is its id, with `.1`, `.2` for further visits in the same round."""
        fields = self._clients.setdefault(str(key), {})
        if math.isfinite(value):
            fields[field] = value

    def clients(self, field: str, values: Mapping[str, Value]) -> None:
        """The same field of several clients."""
        for key, value in values.items():
            self.client(key, field, value)

    def person(self, client: int, field: str, value: Value) -> None:
        """One value of one client of the population, whether or not it took part in the round."""
        fields = self._population.setdefault(client, {})
        if math.isfinite(value):
            fields[field] = value

    def vector(self, tag: str, values: Sequence[float]) -> None:
        """Values over clients, shown as a histogram."""
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            self.vectors[tag] = finite

    def picture(self, tag: str, matrix: Picture) -> None:
        """A matrix with entries in [-1, 1] (or NaN), shown as an image."""
        self.pictures[tag] = matrix

    def matrix(self, tag: str, values: Picture, keys: Sequence[str], labels: Sequence[int | None]) -> None:
        """A symmetric picture that the record keeps too, to three digits, of the first hundred clients.

        keys, labels: of each row, the client's visit and its main label, None where it has none.
        """
        self.picture(tag, values)
        order = sorted(range(len(keys)), key=lambda i: visit_key(keys[i]))[:MOST_CLIENTS]
        upper = [values[i][j] for place, i in enumerate(order) for j in order[place + 1 :]]
        self.matrices[tag] = {
            "clients": [keys[i] for i in order],
            "labels": [labels[i] for i in order],
            "upper": [round(value, 3) if math.isfinite(value) else None for value in upper],
        }

    @property
    def scalars(self) -> dict[str, Value]:
        """Tag -> value in alphabetical order, the counts of skipped values among them."""
        return dict(sorted({**self._scalars, **self._skipped}.items()))

    def record(self, method: str) -> Record:
        """The line for the round log."""
        keys = sorted(self._clients, key=visit_key)
        everyone = {str(key): dict(sorted(self._population[key].items())) for key in sorted(self._population)}
        return {
            "round": self.round,
            "schema": SCHEMA,
            "method": method,
            "weights_scheme": "+".join(sorted(self.schemes)) or "samples",
            "scalars": self.scalars,
            "clients": {key: dict(sorted(self._clients[key].items())) for key in keys},
            **({"population": everyone} if everyone else {}),
            **({"matrices": self.matrices} if self.matrices else {}),
        }


def visit_key(key: str) -> list[int]:
    """For sorting visits: `7`, `7.1`, `10`."""
    return [int(part) for part in key.split(".")]
