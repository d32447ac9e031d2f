"""Which rows of a split the probe consists of: listed in a file, drawn class by class, or drawn as they come."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_sfl.callbacks.probe_rows import ProbeSource, check_source, rows_of
from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.core.population import Population
from lightning_sfl.core.randomness import stream

LISTS = ("indices", "probe_indices", "q_indices")


@dataclass(frozen=True)
class ProbeChoice:
    """A file goes before a draw, and a draw before the whole split; `key` is the watcher's, for errors."""

    key: str
    source: ProbeSource
    max_rows: int | None
    index_file: str | None
    balanced: bool

    def __post_init__(self) -> None:
        most = self.max_rows
        require(most is None or most >= 1, f"{self.key}.max_rows", most, "an integer >= 1, or null")
        drawn = self.index_file is None and self.max_rows is not None
        allowed = "false where index_file or max_rows: null leaves nothing to draw"
        require(not self.balanced or drawn, f"{self.key}.balanced", self.balanced, allowed)

    def check(self, data: Any) -> None:
        """There must be such rows."""
        check_source(data, self.source, self.key)
        if self.index_file is not None or self.balanced:
            self._places(rows_of(data, self.source)[1], seed=0)

    def draw(self, module: Any) -> Population:
        """The rows as one client; says what it dropped of a file."""
        x, y = (part.to(module.device) for part in rows_of(module.data, self.source))
        places, dropped = self._places(y, module.seed)
        if dropped:
            rank_zero_warn(f"{self.key}.index_file={self.index_file}: {dropped} dropped, {len(places)} rows are left")
        return Population(x, y, (places,))

    def _places(self, y: Tensor, seed: int) -> tuple[np.ndarray, str]:
        if self.index_file is not None:
            return self._listed(len(y))
        order = stream(seed, "probe").permutation(len(y))
        if self.balanced:
            classes = y.dim() == 1 and not y.is_floating_point()
            require(classes, f"{self.key}.balanced", True, "false where a row's label is no class")
            order = by_turns(order, y.cpu().numpy())
        return order[: self.max_rows], ""

    def _listed(self, size: int) -> tuple[np.ndarray, str]:
        found = read_indices(f"{self.key}.index_file", str(self.index_file))
        inside = [index for index in found if 0 <= index < size]
        kept = list(dict.fromkeys(inside))
        require(bool(kept), f"{self.key}.index_file", self.index_file, f"a list with rows of 0 to {size - 1}")
        counts = {
            "negative": sum(index < 0 for index in found),
            f"past the last row ({size - 1})": sum(index >= size for index in found),
            "listed twice": len(inside) - len(kept),
        }
        return np.array(kept, dtype=np.int64), ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def by_turns(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same rows, the first of each class, then the second of each, ...: any beginning has classes as alike as can
    be.
    """
    classes = labels[order]
    turn = np.zeros(len(order), dtype=np.int64)
    for label in np.unique(classes):
        mine = classes == label
        turn[mine] = np.arange(mine.sum())
    return order[np.lexsort((classes, turn))]


def read_indices(key: str, path: str) -> list[int]:
    """Row numbers of a JSON list, a JSON object with one under a name of `LISTS`, or a TXT file with one in a line."""
    file = Path(path)
    known = file.is_file() and file.suffix in (".json", ".txt")
    require(known, key, path, "an existing .json or .txt file with a list of row numbers")
    try:
        text = file.read_text(encoding="utf-8")
        entries = (
            _entries(json.loads(text))
            if file.suffix == ".json"
            else [int(line) for line in text.splitlines() if line.strip()]
        )
    except ValueError as error:
        raise ConfigError(f"{key}={path!r} is no list of row numbers: {error}") from None
    return entries


def _entries(document: Any) -> list[int]:
    if isinstance(document, dict):
        names = [name for name in LISTS if name in document]
        if len(names) != 1:
            raise ValueError(f"an object needs one of {', '.join(LISTS)}")
        document = document[names[0]]
    if not isinstance(document, list):
        raise ValueError("neither a list nor an object with one")
    strange = [entry for entry in document if isinstance(entry, bool) or not isinstance(entry, int)]
    if strange:
        raise ValueError(f"{strange[0]!r} is no row number")
    return document
