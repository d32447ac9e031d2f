"""E3: one scalar along the momentum against random directions, at equal scalars and equal tuning (claims C3 and C4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.holograd.cells import Cell, Row, column, interval, where
from benchmarks.holograd.claims import Claim
from benchmarks.holograd.estimators import (
    Estimator,
    Exact,
    OracleMomentum,
    PaperMomentum,
    RandomDirections,
    SharedDirections,
    WithBasis,
    cosine,
    train,
)
from benchmarks.holograd.pictures import axes, save
from benchmarks.holograd.setting import Setting
from benchmarks.holograd.tasks import Problem
from lightning_sfl.core.holograd.basis import BasisChoice
from lightning_sfl.core.holograd.synthesis import Scale

FILE = "e3_momentum_comparison"
COUNT, WARM_UP, BATCH = 64, 10, 64
# The same rates for all ways; those with random directions take them at both scales, and all are judged alike.
RATES = tuple(0.00625 * 2**i for i in range(12))
SCALES: tuple[Scale, ...] = ("unbiased", "norm")
WAYS = {
    "random-64": "64 random directions",
    "random-1": "1 random direction",
    "paper": "paper: 1 scalar along the momentum, times the running norm",
    "paper-plain": "paper's theorems: without the running norm",
    "explore": "momentum and 63 directions outside it",
    "oracle": "1 scalar along the momentum of true gradients",
    "sgd": "the gradient itself",
}


def cells(setting: Setting) -> list[Cell]:
    """Way and seed, on the first task; how many rates are tried."""
    count = len(rates_of(setting))
    return [{"task": setting.tasks[0], "way": w, "seed": s, "rates": count} for w, s in product(WAYS, setting.seeds)]


def rates_of(setting: Setting) -> tuple[float, ...]:
    """Every fourth one where it is only to be seen that all runs."""
    return RATES[::4] if setting.size == "quick" else RATES


def makers(problem: Problem, way: str, seed: int) -> dict[str, Callable[[], Estimator]]:
    """What makes estimators of one way, by scale where it has one; random ones share their directions."""
    like = problem.start
    if way.startswith("random"):
        count = 64 if way == "random-64" else 1
        shared = SharedDirections(seed, f"e3-{count}", problem.size)
        return {scale: partial(RandomDirections, shared, count, scale) for scale in SCALES}
    if way == "explore":
        choice = BasisChoice("momentum")
        return {scale: partial(WithBasis, seed, "e3", choice, COUNT, scale, like) for scale in SCALES}
    alone: dict[str, dict[str, Callable[[], Estimator]]] = {
        "paper": {"": partial(PaperMomentum, like, WARM_UP, scaled=True)},
        "paper-plain": {"": partial(PaperMomentum, like, WARM_UP, scaled=False)},
        "oracle": {"": partial(OracleMomentum, like)},
        "sgd": {"": Exact},
    }
    return alone[way]


def measure(setting: Setting, cell: Cell) -> Row:
    """The best setting, by the last loss; cosines are those of that run, after the warm-up.

    last: the last loss of each setting, rate by rate for each scale; None where it diverged.
    """
    problem = Problem(cell["task"], setting.data, cell["seed"])
    made = makers(problem, cell["way"], cell["seed"])
    tried = list(product(made, rates_of(setting)))
    estimators, rates = [made[scale]() for scale, _ in tried], [rate for _, rate in tried]
    cosines: dict[int, list[float]] = {id(each): [] for each in estimators}

    def watch(estimator: Estimator, gradient: Tensor, estimate: Tensor, t: int) -> None:
        if t >= WARM_UP:
            cosines[id(estimator)].append(cosine(estimate, gradient))

    curves = train(problem, estimators, rates, setting.sizes.steps, BATCH, watch, looks=setting.sizes.steps // WARM_UP)
    best = min(range(len(tried)), key=lambda i: curves[i][-1])
    seen = torch.tensor(cosines[id(estimators[best])], dtype=torch.float64).nan_to_num(0.0)
    found: Row = {
        "D": problem.size, "scale": tried[best][0], "rate": rates[best], "curve": curves[best],
        "last": [curve[-1] if math.isfinite(curve[-1]) else None for curve in curves],
        "cos_abs": float(seen.abs().mean()), "cos_rms": float(seen.square().mean().sqrt()),
    }  # fmt: skip
    chosen = estimators[best]
    if isinstance(chosen, PaperMomentum):
        found |= {"turned": chosen.turned, "sigma": chosen.legacy.sigma}
    return found


def drop(row: Row) -> float:
    """What the loss fell by."""
    return float(row["curve"][0] - row["curve"][-1])


def late(row: Row) -> float:
    """Share of the loss at half time that the second half still takes off."""
    curve = row["curve"]
    return float(1 - curve[-1] / curve[len(curve) // 2])


def warm(row: Row) -> float:
    """Share of the whole fall that belongs to the warm-up, which takes full-gradient steps."""
    return float((row["curve"][0] - row["curve"][1]) / drop(row))


def tuning(rows: Sequence[Row], setting: Setting) -> dict[str, str]:
    """Which setting was best, of the same ones for all."""
    rates = rates_of(setting)
    ends = sum(row["rate"] in (rates[0], rates[-1]) for row in rows)
    found = {
        f"best rate by seed: {WAYS[way]}": ", ".join(
            f"{row['scale']} {row['rate']:g}".strip() for row in where(rows, way=way)
        )
        for way in WAYS
    }
    tried = f"{len(rates)} rates from {rates[0]:g} to {rates[-1]:g}, with random directions at both scales"
    return {"tried for each": tried, **found, "best rates at an end of what was tried": f"{ends} of {len(rows)}"}


def claims(rows: Sequence[Row], setting: Setting) -> list[Claim]:
    """C3: 180 times the alignment; C4: 30 to 40 % of SGD."""
    size = rows[0]["D"]
    rho = interval(column(rows, "cos_abs", way="oracle"))
    single = math.sqrt(2 / (math.pi * size))
    rms = [
        where(rows, way="oracle", seed=s)[0]["cos_rms"] / where(rows, way="random-64", seed=s)[0]["cos_rms"]
        for s in setting.seeds
    ]
    predicted = [where(rows, way="oracle", seed=s)[0]["cos_rms"] * math.sqrt((size + 63) / 64) for s in setting.seeds]
    frozen = [abs(v) for way in ("paper", "paper-plain") for v in column(rows, "turned", way=way)]
    falls = {
        way: interval(
            [drop(where(rows, way=way, seed=s)[0]) / drop(where(rows, way="sgd", seed=s)[0]) for s in setting.seeds]
        )
        for way in WAYS
    }
    papers = [row for row in rows if row["way"].startswith("paper")]
    standstill = max(late(row) for row in papers) < 0.01 < min(late(row) for row in where(rows, way="sgd"))
    margin = interval(
        [
            drop(where(rows, way="explore", seed=s)[0]) - drop(where(rows, way="random-64", seed=s)[0])
            for s in setting.seeds
        ]
    )
    rms_ratio = interval(rms).mean
    is_frozen = min(frozen) > 1 - 1e-4
    three = {
        "|cos(m_t, m_t0)| of the paper's rule at the end (1 is frozen)": str(interval(frozen)),
        "|cos(g, m)|, momentum of true gradients": str(rho),
        "its ratio to 64 random directions (rms cosines)": str(interval(rms)),
        "ratio predicted, rho sqrt((K+D-1)/K)": str(interval(predicted)),
        "its ratio to one random direction's mean |cos|": f"{rho.mean / single:.3g}",
        "|cos| of the paper's rule after its warm-up": str(interval(column(rows, "cos_abs", way="paper"))),
        "|cos| of momentum and 63 outside": str(interval(column(rows, "cos_abs", way="explore"))),
        "|cos| of 64 random": str(interval(column(rows, "cos_abs", way="random-64"))),
        "fall of the loss, explore minus random-64": str(margin),
        "D": str(size),
    }
    why = (
        f"holds for a momentum of true gradients, which nobody in the protocol has, and as rho sqrt(D/K), "
        f"{rms_ratio:.2g} here (180 takes D/K of about a million); the paper's own "
        "momentum never turns once the warm-up ends"
    )
    four = {f"fall of the loss / SGD's: {WAYS[way]}": str(each) for way, each in falls.items()}
    four |= {
        f"loss taken off by the second half: {WAYS[w]}": str(interval(map(late, where(rows, way=w)))) for w in WAYS
    }
    four |= tuning(rows, setting)
    four["share of the paper's fall that its warm-up with full gradients makes"] = str(interval(map(warm, papers)))
    return [
        Claim(
            3, "A scalar along the momentum is 180 times better aligned than a random one.",
            "true under a condition" if is_frozen else "supported", why if is_frozen else "the momentum turns", three,
        ),
        Claim(
            4, "Momentum-centric training makes 30 to 40 % of SGD's progress.",
            "refuted" if standstill else "supported",
            f"it comes to a standstill on one line at {falls['paper'].mean:.0%} of SGD's fall, most of it from the ten "
            f"full-gradient steps at first; the second half takes {interval(map(late, papers)).mean:.1%} off the loss"
            if standstill else "in the second half too", four,
        ),
    ]  # fmt: skip


def draw(rows: Sequence[Row], setting: Setting, path: Path) -> None:
    """Loss over steps, and cosines."""
    figure, panels = axes(2)
    for way, label in WAYS.items():
        curves = torch.tensor([row["curve"] for row in where(rows, way=way)])
        steps = [i * setting.sizes.steps / (curves.shape[1] - 1) for i in range(curves.shape[1])]
        panels[0].plot(steps, curves.mean(0), label=label)
    panels[0].axvspan(0, WARM_UP, color="grey", alpha=0.2)
    panels[0].set(xlabel="step", ylabel="training loss", yscale="log", title="each at its best rate of the same twelve")
    panels[0].legend(fontsize=6)
    found = [interval(column(rows, "cos_abs", way=way)) for way in WAYS]
    panels[1].barh(list(WAYS), [f.mean for f in found], xerr=[f.half for f in found])
    panels[1].invert_yaxis()
    panels[1].set(xscale="log", xlabel="|cos(estimate, gradient)| after the warm-up")
    save(figure, path / "momentum_vs_random.png")
