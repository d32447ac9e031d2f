"""What a study found: accuracy of every method in every arm, gaps to SFL in the same arm, and what a match closed."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.dynamics.gaps import Gap, holm, paired
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.records.curves import last_mean, mean, spread
from lightning_sfl.records.folders import run_folders
from lightning_sfl.records.forms import PM, Table, as_csv
from lightning_sfl.records.groups import shown_value
from lightning_sfl.records.palette import place_of
from lightning_sfl.records.runs import Run, read_runs

REFERENCE = "SFL"
KEYS = ("client_scale", "server_steps", "start")
PUBLISHED = "as published"
ARMS = (PUBLISHED, "scale", "start", "server steps", "all three")
MEASURED = {"gradient scale": "cut/scale_rel_mean", "start distance": "init/dist", "server steps": "count/server_steps"}
Cell = tuple[str, str]


def arm_of(run: Run) -> str:
    """Which dynamics a run matches."""
    found = {key: run.settings.get(f"model.dynamics.{key}") for key in KEYS}
    matched = [key for key, value in found.items() if value not in (None, "method", 0)]
    if len(matched) == len(KEYS):
        return "all three"
    return (
        {"client_scale": "scale", "server_steps": "server steps", "start": "start"}[matched[0]]
        if matched
        else PUBLISHED
    )


@dataclass
class Study:
    """Finished runs by (method, arm) and seed. Only seeds for which every cell is finished count: pairs are by seed.

    An arm in which a method was not trained is one whose match cannot change it; its runs are those as published.
    """

    runs: dict[Cell, dict[int, Run]]
    last: int
    methods: list[str] = field(init=False)
    arms: list[str] = field(init=False)
    seeds: list[int] = field(init=False)

    def __post_init__(self) -> None:
        first = {method: next(iter(runs.values())) for (method, _), runs in self.runs.items()}
        self.methods = sorted(first, key=lambda method: place_of(first[method].method))
        self.arms = [arm for arm in ARMS if any(arm == other for _, other in self.runs)]
        whole = [set(runs) for runs in self.runs.values()]
        self.seeds = sorted(set.intersection(*whole)) if whole else []
        if REFERENCE not in self.methods or PUBLISHED not in self.arms or not self.seeds:
            raise ConfigError(f"out: no seed of which every run has finished, {REFERENCE} {PUBLISHED} among them")

    def of(self, method: str, arm: str) -> dict[int, Run]:
        """Seed -> the run of a cell."""
        found = self.runs.get((method, arm)) or self.runs[method, PUBLISHED]
        return {seed: found[seed] for seed in self.seeds}

    def accuracy(self, method: str, arm: str) -> dict[int, float]:
        """Seed -> mean accuracy over the last rounds, in percentage points."""
        means = {seed: last_mean(run, run.accuracy_tag, self.last) for seed, run in self.of(method, arm).items()}
        return {seed: 100 * value for seed, value in means.items() if value is not None}

    def gap(self, method: str, arm: str) -> Gap:
        """How far a method lies below SFL in the same arm."""
        return paired(self.accuracy(REFERENCE, arm), self.accuracy(method, arm))

    def closed(self, method: str, arm: str) -> Gap:
        """By how much the gap of an arm is smaller than the published one."""
        gaps = [
            {seed: reference[seed] - own[seed] for seed in self.seeds}
            for reference, own in (
                (self.accuracy(REFERENCE, where), self.accuracy(method, where)) for where in (PUBLISHED, arm)
            )
        ]
        return paired(gaps[0], gaps[1])

    def others(self) -> list[str]:
        return [method for method in self.methods if method != REFERENCE]

    def measured(self, method: str, arm: str, tag: str) -> float | None:
        """A dynamic as the runs recorded it, the mean over rounds and seeds; None where it was not."""
        values = [mean([v for _, v in run.series(tag)]) for run in self.of(method, arm).values()]
        return spread(values).mean

    def sure(self) -> tuple[set[Hashable], set[Hashable]]:
        """Cells whose gap, and whose change of the gap, is not chance with all cells looked at together."""
        gaps = {(m, a): self.gap(m, a).p for m in self.others() for a in self.arms}
        closed = {(m, a): self.closed(m, a).p for m in self.others() for a in self.arms if a != PUBLISHED}
        known = [{name: p for name, p in found.items() if p is not None} for found in (gaps, closed)]
        return holm(known[0]), holm(known[1])  # type: ignore[arg-type]


def read(paths: Iterable[Path], last: int) -> Study:
    """All runs below these folders that have every round they were to have."""
    runs, _ = read_runs(run_folders(paths))
    found: dict[Cell, dict[int, Run]] = {}
    for run in runs:
        if run.planned == run.rounds and run.seed is not None:
            found.setdefault((shown_value(run.settings["model"]), arm_of(run)), {})[run.seed] = run
    return Study(found, last)


# --- tables ----------------------------------------------------------------------------------------------------------


def accuracies(study: Study) -> Table:
    """Accuracy by method and arm."""
    rows = []
    for method in study.methods:
        found = [spread(list(study.accuracy(method, arm).values())) for arm in study.arms]
        cells = [f"{s.mean:.1f}" + (f" {PM} {s.sd:.1f}" if s.sd is not None else "") for s in found]
        rows.append([method, *cells])
    note = f"Percent, mean over the last {study.last} rounds; mean {PM} standard deviation over seeds {_listed(study)}."
    return Table("Accuracy", ["method", *study.arms], rows, [True] * (len(study.arms) + 1), note)


def gaps(study: Study) -> Table:
    """How far each method lies below SFL whose dynamics are matched likewise."""
    sure, _ = study.sure()
    rows = [[m, *(_shown(study.gap(m, arm), (m, arm) in sure) for arm in study.arms)] for m in study.others()]
    note = (
        f"Percentage points below {REFERENCE} in the same arm, with 95 % intervals of Student's t over "
        f"{len(study.seeds)} seeds (a pair each). `*` the interval leaves out zero, `**` and so it does with all "
        "cells of the table looked at together (Holm); [?] no spread between seeds, so that there is no interval."
    )
    return Table(f"Gap to {REFERENCE}", ["method", *study.arms], rows, [True] * (len(study.arms) + 1), note)


def changes(study: Study) -> Table:
    """What each match closes of the published gap."""
    _, sure = study.sure()
    arms = [arm for arm in study.arms if arm != PUBLISHED]
    rows = [[m, *(_shown(study.closed(m, arm), (m, arm) in sure) for arm in arms)] for m in study.others()]
    note = (
        "Percentage points by which the gap is smaller than as published (negative: larger), paired by seed; marks as "
        "above. 0.0 without an interval: the match changes nothing, in any seed."
    )
    return Table("What a match closes", ["method", *arms], rows, [True] * (len(arms) + 1), note)


def dynamics(study: Study) -> Table:
    """The dynamics as measured in the runs: whether a match did what it says."""
    header = ["method", *(f"{what}, {arm}" for what in MEASURED for arm in (PUBLISHED, "all three"))]
    rows = []
    for method in study.methods:
        values = [study.measured(method, arm, tag) for tag in MEASURED.values() for arm in (PUBLISHED, "all three")]
        rows.append([method, *("" if value is None else f"{value:.3g}" for value in values)])
    note = (
        "Means over rounds and seeds. Scale 1: the mean over the client's own batch. Steps: of a round, all server "
        "copies together."
    )
    return Table("Dynamics as measured", header, rows, [True] * len(header), note)


def csv_of(study: Study) -> str:
    """Every cell at full precision."""
    parts = [f"{what}{part}" for what in ("gap", "closed") for part in ("", "_low", "_high", "_p")]
    header = ["method", "arm", "seeds", "accuracy", *parts]
    lines = []
    for method in study.methods:
        for arm in study.arms:
            own, gap, closed = study.accuracy(method, arm), study.gap(method, arm), study.closed(method, arm)
            values = [value for one in (gap, closed) for value in (one.mean, one.low, one.high, one.p)]
            lines.append([method, arm, len(study.seeds), mean(list(own.values())), *values])
    return as_csv(header, lines)


def _listed(study: Study) -> str:
    return ", ".join(map(str, study.seeds))


def _shown(gap: Gap, sure: bool) -> str:
    if gap.half is None:
        return f"{gap.mean:+.1f} [?]" if gap.pairs > 1 else f"{gap.mean:+.1f}"
    if gap.half == 0 and gap.mean == 0:
        return "0.0"
    text = f"{gap.mean:+.1f} [{gap.low:.1f}, {gap.high:.1f}]"
    return text + ("**" if sure else "*" if abs(gap.mean) > gap.half else "")
