"""E4: does a learned subspace learn? Planted gradients of rank 4, then a real network (claim C5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.holograd.cells import Cell, Row, column, interval, where
from benchmarks.holograd.claims import Claim
from benchmarks.holograd.estimators import (
    Estimator,
    PaperSubspace,
    RandomDirections,
    SharedDirections,
    WithBasis,
    basis_energy,
    train,
)
from benchmarks.holograd.pictures import axes, save
from benchmarks.holograd.setting import Setting
from benchmarks.holograd.tasks import Problem
from lightning_sfl.core.holograd.basis import BasisChoice
from lightning_sfl.core.holograd.directions import orthonormal_rows
from lightning_sfl.core.holograd.synthesis import Scale
from lightning_sfl.core.randomness import stream

FILE = "e4_adc_energy"
SIZE, PLANTED = 1000, 4
OUTSIDE = 32  # scalars = rank + 32 for every way
# Fourteen settings for each way, of scale and rate: the same, but for the paper's, whose estimates are far shorter.
SCALES: tuple[Scale, ...] = ("unbiased", "norm")
SETTINGS: tuple[tuple[Scale, float], ...] = tuple(product(SCALES, (0.05 * 2**i for i in range(7))))
PAPERS: tuple[tuple[Scale, float], ...] = tuple(("unbiased", 0.05 * 2**i) for i in range(14))
WAYS = {
    "off": "random directions only",
    "paper": "ADC as in the paper",
    "explore": "ADC with 32 directions outside",
    "oracle": "the same, learning from true gradients",
}


def cells(setting: Setting) -> list[Cell]:
    """Planted: way but off, rank, seed; then the network."""
    sizes = setting.sizes
    ways = [way for way in WAYS if way != "off"]
    found: list[Cell] = [
        {"part": "planted", "way": w, "rank": r, "seed": s} for r, w, s in product(sizes.ranks, ways, setting.seeds)
    ]
    found += [
        {"part": "network", "task": setting.tasks[0], "way": w, "rank": r, "seed": s, "settings": len(SETTINGS)}
        for r, w, s in product(sizes.subspace_ranks, WAYS, setting.seeds)
    ]
    return found


def maker(way: str, rank: int, seed: int, like: Tensor) -> Callable[[Scale], Estimator]:
    """What makes estimators of rank + 32 scalars, given their scale; random ones share their directions."""
    count, purpose = rank + OUTSIDE, f"e4-{way}-{rank}"
    shared = SharedDirections(seed, purpose, len(like))
    choice = BasisChoice("subspace", rank=rank)
    made: dict[str, Callable[[Scale], Estimator]] = {
        "off": lambda scale: RandomDirections(shared, count, scale),
        "paper": lambda scale: PaperSubspace(seed, purpose, rank, count, like),
        "explore": lambda scale: WithBasis(seed, purpose, choice, count, scale, like),
        "oracle": lambda scale: WithBasis(seed, purpose, choice, count, scale, like, oracle=True),
    }
    return made[way]


def rows_of(estimator: Estimator) -> Tensor | None:
    """The subspace as it is now."""
    if isinstance(estimator, PaperSubspace):
        return estimator.legacy.rows
    return estimator.basis.rows if isinstance(estimator, WithBasis) else None


def measure(setting: Setting, cell: Cell) -> Row:
    """Either part."""
    return _planted(setting, cell) if cell["part"] == "planted" else _network(setting, cell)


def _planted(setting: Setting, cell: Cell) -> Row:
    """g_t = A w_t with a fixed A of rank 4: captured energy over time, of g and of its estimate."""
    draws = stream(cell["seed"], "planted")
    basis = orthonormal_rows(torch.from_numpy(draws.standard_normal((PLANTED, SIZE))).float())
    estimator = maker(cell["way"], cell["rank"], cell["seed"], torch.zeros(SIZE))("mmse")
    steps = setting.sizes.planted_steps
    true, own = [], []
    for t in range(steps):
        gradient = torch.from_numpy(draws.standard_normal(PLANTED)).float() @ basis
        rows = rows_of(estimator)
        assert rows is not None
        true.append(basis_energy(rows, gradient))
        own.append(basis_energy(rows, estimator.step(gradient, t)))
    tail = max(1, steps // 10)
    return {
        "start": sum(true[:tail]) / tail,
        "end": sum(true[-tail:]) / tail,
        "own": sum(own[-tail:]) / tail,
        "curve": true[:: max(1, steps // 50)],
    }


def _network(setting: Setting, cell: Cell) -> Row:
    """The best setting by the last loss; captured energy of its true gradients, each before it is learned."""
    problem = Problem(cell["task"], setting.data, cell["seed"])
    make = maker(cell["way"], cell["rank"], cell["seed"], problem.start)
    tried = PAPERS if cell["way"] == "paper" else SETTINGS
    rates, estimators = [rate for _, rate in tried], [make(scale) for scale, _ in tried]
    before: dict[int, Tensor | None] = {id(each): rows_of(each) for each in estimators}
    energies: dict[int, list[float]] = {id(each): [] for each in estimators}

    def watch(estimator: Estimator, gradient: Tensor, estimate: Tensor, t: int) -> None:
        rows = before[id(estimator)]
        if rows is not None:
            energies[id(estimator)].append(basis_energy(rows, gradient))
            before[id(estimator)] = rows_of(estimator)

    curves = train(problem, estimators, rates, setting.sizes.subspace_steps, 64, watch)
    best = min(range(len(rates)), key=lambda i: curves[i][-1])
    found: Row = {
        "D": problem.size,
        "scale": tried[best][0],
        "rate": rates[best],
        "losses": curves[best],
        "loss": curves[best][-1],
    }
    energy = energies[id(estimators[best])]
    tail = max(1, len(energy) // 10)
    return found | ({"start": sum(energy[:tail]) / tail, "end": sum(energy[-tail:]) / tail} if energy else {})


def claims(rows: Sequence[Row], setting: Setting) -> list[Claim]:
    """C5: ADC learns, captured energy grows."""
    sizes = setting.sizes
    figures = {}
    for way, rank in product(("paper", "explore", "oracle"), sizes.ranks):
        found = where(rows, part="planted", way=way, rank=rank)
        ends = [interval(column(found, field)) for field in ("start", "end")]
        figures[f"planted, rank {rank} (r/D {rank / SIZE:.4f}), {WAYS[way]}: captured at start -> end"] = (
            f"{ends[0]} -> {ends[1]}"
        )
    own = interval(column(rows, "own", part="planted", way="paper"))
    figures["share of the paper's own estimate inside its subspace"] = str(own)
    gains = {}
    for rank in sizes.subspace_ranks:
        for way, label in WAYS.items():
            found = where(rows, part="network", way=way, rank=rank)
            text = f"loss {interval(column(found, 'loss'))}"
            if way != "off":
                text += f", captured {interval(column(found, 'start'))} -> {interval(column(found, 'end'))}"
            figures[f"network, rank {rank}, {label}"] = text
            best = ", ".join(f"{row['scale']} {row['rate']:g}" for row in found)
            figures[f"network, rank {rank}, {label}: best of {len(SETTINGS)} settings, by seed"] = best
        pairs = [
            [where(rows, part="network", way=w, rank=rank, seed=s)[0]["loss"] for w in ("off", "explore")]
            for s in setting.seeds
        ]
        gains[rank] = interval([off - explore for off, explore in pairs])
        figures[f"network, rank {rank}: loss saved by exploring ADC over none"] = str(gains[rank])
    paper = [row["end"] / row["start"] for row in where(rows, part="planted", way="paper")]
    grown = [row["end"] / row["start"] for row in where(rows, part="planted", way="explore")]
    figures["growth of captured energy, paper's rule"] = str(interval(paper))
    figures["growth of captured energy, exploring"] = str(interval(grown))
    learns = interval(grown).mean > 2
    constant = interval(paper).mean < 1.5
    real = {
        way: [row["end"] / row["start"] for row in where(rows, part="network", way=way)]
        for way in ("explore", "oracle")
    }
    figures["growth of captured energy on the network, exploring"] = str(interval(real["explore"]))
    figures["growth of captured energy on the network, true gradients"] = str(interval(real["oracle"]))
    condition = "as specified the subspace cannot leave its own span, and finds 1 when it asks its own estimate; " + (
        "with directions outside it, it learns a subspace that was planted"
        if learns
        else "directions outside it do not teach it a planted subspace either"
    )
    end = [
        interval(column(rows, "end", part="network", way=w, rank=sizes.subspace_ranks[-1])).mean
        for w in ("explore", "oracle")
    ]
    condition += (
        f", and a trace of the network's ({end[0]:.1%} of its gradients, where true gradients teach {end[1]:.0%})"
        if interval(real["explore"]).low > 1
        else ", but not the network's, where the noise of the estimates is larger than what they hold of it"
    )
    return [
        Claim(
            5,
            "ADC learns the gradients' subspace: captured energy grows.",
            "refuted" if constant else "supported",
            condition,
            figures,
        )
    ]


def draw(rows: Sequence[Row], setting: Setting, path: Path) -> None:
    """Captured energy over time on planted gradients; loss on the network."""
    figure, panels = axes(2)
    largest = setting.sizes.ranks[-1]
    for way in ("paper", "explore", "oracle"):
        for rank in {setting.sizes.ranks[0], largest}:
            curve = torch.tensor([row["curve"] for row in where(rows, part="planted", way=way, rank=rank)]).mean(0)
            steps = torch.arange(len(curve)) * max(1, setting.sizes.planted_steps // 50)
            panels[0].plot(steps, curve, label=f"{way}, rank {rank}", linestyle="-" if rank == largest else "--")
    panels[0].set(xlabel="step", ylabel="true captured energy", yscale="log", title="planted rank 4, D = 1000")
    rank = setting.sizes.subspace_ranks[-1]
    for way, label in WAYS.items():
        curve = torch.tensor([row["losses"] for row in where(rows, part="network", way=way, rank=rank)]).mean(0)
        steps = torch.arange(len(curve)) * setting.sizes.subspace_steps / (len(curve) - 1)
        panels[1].plot(steps, curve, label=label)
    panels[1].set(xlabel="step", ylabel="training loss", title=f"network, rank {rank}, {rank + OUTSIDE} scalars a step")
    for panel in panels:
        panel.legend(fontsize=7)
    save(figure, path / "adc_captured_energy.png")
