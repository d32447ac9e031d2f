"""Rows of a comparison: runs that differ in nothing but the seed, under a label that tells the rows apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_sfl.records.runs import Run


@dataclass(eq=False)
class Group:
    """Runs of one configuration, one per seed, by seed; variant: which of the rows of this method it is."""

    runs: list[Run]
    label: str = ""
    variant: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def settings(self) -> dict[str, Any]:
        return self.runs[0].settings

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def class_name(self) -> str:
        """`SFLV1`, as configs write it."""
        return shown_value(self.settings["model"])


def group(runs: Iterable[Run]) -> list[Group]:
    """One group per configuration, in the order in which they come, labelled."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(run.settings, sort_keys=True, default=str), []).append(run)
    groups = [_one_run_per_seed(members) for members in found.values()]
    _label(groups)
    return groups


def shown_value(value: Any) -> str:
    """A setting as a label shows it: classes by their last name."""
    if isinstance(value, str):
        return value.rpartition(".")[2] or value
    return json.dumps(value)


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each key -> its shortest ending that no other key has: `alpha`, but `client_optimizer.lr`."""
    known = list(keys)
    endings = {key: [".".join(key.split(".")[-n:]) for n in range(1, key.count(".") + 2)] for key in known}

    def alone(key: str, ending: str) -> bool:
        return not any(other != key and ending in endings[other] for other in known)

    return {key: next((ending for ending in endings[key] if alone(key, ending)), key) for key in known}


def differing(groups: Sequence[Group]) -> list[str]:
    """Settings that are not the same in all groups, the method itself left out."""
    keys = dict.fromkeys(key for one in groups for key in one.settings)
    missing = object()
    return [
        key
        for key in keys
        if key != "model"
        and any(one.settings.get(key, missing) != groups[0].settings.get(key, missing) for one in groups)
    ]


def _one_run_per_seed(runs: list[Run]) -> Group:
    """Of several runs with one seed the longest counts, the last of equals; a note says so."""
    by_seed: dict[int | None, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run)
    kept, notes = [], []
    for seed in sorted(by_seed, key=lambda seed: -1 if seed is None else seed):
        twins = by_seed[seed]
        chosen = max(enumerate(twins), key=lambda pair: (pair[1].rounds, pair[0]))[1]
        kept.append(chosen)
        if len(twins) > 1:
            same = all(run.records == chosen.records for run in twins)
            alike = "that are identical; one counts" if same else f"that differ; {chosen.folder} counts"
            notes.append(f"seed {seed} has {len(twins)} runs {alike}")
    return Group(kept, notes=notes)


def _label(groups: list[Group]) -> None:
    """The method's class, and what tells the rows of this method apart."""
    short = short_keys({key for one in groups for key in one.settings})
    by_method: dict[str, list[Group]] = {}
    for one in groups:
        by_method.setdefault(one.class_name, []).append(one)
    for name, members in by_method.items():
        keys = differing(members)
        for variant, one in enumerate(members):
            parts = [f"{short[key]}={shown_value(one.settings[key])}" for key in keys if key in one.settings]
            one.label, one.variant = " ".join([name, *parts]), variant
    taken: dict[str, int] = {}
    for one in groups:
        taken[one.label] = taken.get(one.label, 0) + 1
        if taken[one.label] > 1:
            one.label = f"{one.label} ({taken[one.label]})"
