"""Who takes part in a round."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.core.population import Population
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.reports import Report
from lightning_sfl.core.rounds import Plan


class Selector(ABC):
    """Chooses the participants of a round from the clients that have data.

    depends_on_past: whether choices depend on earlier rounds. Such a selector is a `Memory` besides, changes what it
    remembers in `observe` and `learn` only, and so goes on from a checkpoint where it was.
    learns: whether it wants to be told work and losses, which take time to find out.
    """

    depends_on_past: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def prepare(  # noqa: B027
        self, population: Population, num_classes: int, participants: int, step_rows: int | None
    ) -> None:
        """Look at the data, once, before the first choice.

        step_rows: rows that all participants of a local step have together, as configured; None for all they hold.
        """

    def tell_work(self, rows: Sequence[int], seconds: Sequence[float]) -> None:  # noqa: B027
        """Take note of what a round takes of each client: different rows, and simulated seconds."""

    def observe(self, plan: Plan) -> None:  # noqa: B027
        """Take note of a round that is over."""

    def learn(self, round: int, reports: Mapping[int, Report]) -> None:  # noqa: B027
        """Take note of what it has shown of each client, by id."""

    @abstractmethod
    def select(self, round: int, available: np.ndarray, participants: int, seed: int) -> list[int]:
        """Distinct ids out of `available` (ascending ids of clients with at least one row)."""

    @property
    def looks_at_data(self) -> bool:
        """Whether choices may follow from what rows the clients hold, so that they give something of it away."""
        return type(self).prepare is not Selector.prepare

    def most(self, participants: int) -> int:
        """The largest number of participants that any round may have."""
        return participants

    def fewest(self, participants: int) -> int:
        """The smallest number of participants of a round, where as many clients as that have data."""
        return participants


class Uniform(Selector):
    """`participants` clients without replacement, all equally likely (all of them when fewer have data)."""

    def select(self, round: int, available: np.ndarray, participants: int, seed: int) -> list[int]:
        count = min(participants, len(available))
        chosen = stream(seed, "participants", round).choice(available, size=count, replace=False)
        return [int(client) for client in chosen]


class FixedSchedule(Selector):
    """Participants listed round by round in a JSON file; all listed clients take part, whatever `participants` says.

    Args:
        path: JSON file: a list of lists (round 0 first), {"rounds": [...]}, or {"1": [...], "2": [...]}
            (round 1 first, none left out).
    """

    def __init__(self, path: str) -> None:
        self.rounds = read_rounds("selection.path", path)

    def most(self, participants: int) -> int:
        return max(len(clients) for clients in self.rounds)

    def fewest(self, participants: int) -> int:
        return min(len(clients) for clients in self.rounds)

    def select(self, round: int, available: np.ndarray, participants: int, seed: int) -> list[int]:
        if round >= len(self.rounds):
            raise ConfigError(f"the schedule lists {len(self.rounds)} rounds, but round {round} was asked for")
        strangers = sorted(set(self.rounds[round]) - set(available.tolist()))
        if strangers:
            raise ConfigError(f"schedule round {round} lists clients {strangers} that do not exist or have no data")
        return self.rounds[round]


def read_rounds(key: str, path: str) -> list[list[int]]:
    """Clients by round, out of a file in one of the formats of `FixedSchedule`; `key` names the setting in errors."""
    file = Path(path)
    require(file.is_file(), key, path, "an existing JSON file with one list of clients per round")
    try:
        rounds = _rounds_of(json.loads(file.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{key}={path!r} is not a schedule: {error}") from None
    require(bool(rounds), key, path, "a schedule with at least one round")
    return rounds


def _rounds_of(document: object) -> list[list[int]]:
    if isinstance(document, dict):
        document = document["rounds"] if "rounds" in document else _numbered(document)
    if not isinstance(document, list):
        raise TypeError("neither a list nor an object")
    return [_distinct(entry) for entry in document]


def _numbered(document: dict[str, object]) -> list[object]:
    names = [str(number) for number in range(1, len(document) + 1)]
    if set(names) != set(document):
        raise KeyError(f"rounds must be numbered 1 to {len(document)} without a gap")
    return [document[name] for name in names]


def _distinct(entry: Sequence[object]) -> list[int]:
    clients = list(dict.fromkeys(entry))
    if not clients or any(isinstance(c, bool) or not isinstance(c, int) for c in clients):
        raise TypeError(f"a round must be a non-empty list of client ids, got {entry!r}")
    return [int(client) for client in clients if isinstance(client, int)]
