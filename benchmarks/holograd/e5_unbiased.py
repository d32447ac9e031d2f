"""E5: is the estimate right on average? (claim C6)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

from benchmarks.holograd import predictions
from benchmarks.holograd.cells import Cell, Row, interval, where
from benchmarks.holograd.claims import Claim, Verdict
from benchmarks.holograd.estimators import cosine, seeds_of
from benchmarks.holograd.legacy import trimmed_over_directions
from benchmarks.holograd.pictures import axes, save
from benchmarks.holograd.setting import Setting
from benchmarks.holograd.tasks import Problem
from lightning_sfl.core.holograd.directions import Directions

FILE = "e5_unbiased"
COUNT, TRIM = 64, 0.1
WAYS = {
    "unbiased": "(D/K) sum a v",
    "trimmed": "10 % trimmed at each end, over the directions",
    "norm": "times sqrt(K/D), the code's default",
    "clipped": "clipped to norm 1, the code's default",
}


def cells(setting: Setting) -> list[Cell]:
    """Number of estimates that are averaged, seed; all ways together."""
    return [{"task": setting.tasks[0], "T": t, "seed": s} for t, s in product(setting.sizes.repeats, setting.seeds)]


def measure(setting: Setting, cell: Cell) -> Row:
    """Relative error, cosine and slope <mean, g> / ||g||^2 of the mean of T estimates, for each way."""
    problem = Problem(cell["task"], setting.data, cell["seed"])
    gradient = problem.gradient(problem.start, problem.batch("batch", 0, 64))
    size, nothing = problem.size, torch.zeros(0, problem.size)
    totals = {way: torch.zeros(size, dtype=torch.float64) for way in WAYS}
    for t in range(cell["T"]):
        directions = Directions(seeds_of(cell["seed"], f"e5-{cell['T']}", t, COUNT), nothing)
        scalars = directions.project(gradient[None])[0]
        plain = size / COUNT * directions.combine(scalars)
        totals["unbiased"] += plain
        totals["norm"] += math.sqrt(COUNT / size) * plain
        totals["clipped"] += plain / max(1.0, float(plain.norm()))
        totals["trimmed"] += size * directions.combine(trimmed_over_directions(scalars, TRIM))
    true, found = gradient.double(), {}
    for way, total in totals.items():
        mean = total / cell["T"]
        found[way] = {
            "error": float((mean - true).norm() / true.norm()),
            "cos": cosine(mean, true),
            "slope": float(mean @ true / true.square().sum()),
        }
    return {"D": size, "norm": float(true.norm()), **found}


def predicted(row: Row) -> float:
    """Relative error of the mean of T unbiased estimates."""
    return math.sqrt(predictions.squared_error(COUNT * row["T"], row["D"]))


def claims(rows: Sequence[Row], setting: Setting) -> list[Claim]:
    """C6: E[estimate] = g."""
    ratios = [row["unbiased"]["error"] / predicted(row) for row in rows]
    cosines = [row["unbiased"]["cos"] * math.sqrt(1 + predicted(row) ** 2) for row in rows]
    most = where(rows, T=setting.sizes.repeats[-1])
    slopes = {way: interval([row[way]["slope"] for row in most]) for way in WAYS}
    figures = {
        "error of the mean / sqrt((D-1)/(KT))": str(interval(ratios)),
        "cosine of the mean / 1/sqrt(1+(D-1)/(KT))": str(interval(cosines)),
        **{f"E<estimate, g>/||g||^2, {WAYS[way]}": str(each) for way, each in slopes.items()},
        "predicted slope with trimming (K -> infinity)": f"{predictions.trimming_bias(TRIM):.3f}",
        "predicted slope of the code's scale, sqrt(K/D)": f"{math.sqrt(COUNT / rows[0]['D']):.4f}",
        "KT needed for an error of .01": f"{1e4 * rows[0]['D']:.3g}",
    }
    for t in setting.sizes.repeats:
        found = [row["unbiased"]["error"] for row in where(rows, T=t)]
        figures[f"error at T={t} (predicted {predicted(where(rows, T=t)[0]):.3f})"] = str(interval(found))
    holds = max(abs(r - 1) for r in ratios) < 0.1
    broken = max(ratios) > 1.3
    shrunk = ", ".join(f"{WAYS[way]} ({slopes[way].mean:.2g})" for way in WAYS if slopes[way].high < 0.9)
    condition = f"with the mean of all scalars, unit directions and the scale D/K; these shrink it: {shrunk}"
    verdict: Verdict = "refuted" if broken or not holds else "true under a condition"
    return [
        Claim(
            6,
            "The estimate is unbiased: E[estimate] = g.",
            verdict,
            condition if verdict != "refuted" else "errors exceed the prediction",
            figures,
        )
    ]


def draw(rows: Sequence[Row], setting: Setting, path: Path) -> None:
    """Error of the mean over T; slopes."""
    figure, panels = axes(2)
    repeats = setting.sizes.repeats
    found = [interval([row["unbiased"]["error"] for row in where(rows, T=t)]) for t in repeats]
    panels[0].errorbar(repeats, [f.mean for f in found], [f.half for f in found], marker="o", label="measured")
    panels[0].plot(repeats, [predicted(where(rows, T=t)[0]) for t in repeats], color="black", label="sqrt((D-1)/(KT))")
    panels[0].set(xscale="log", yscale="log", xlabel="T estimates averaged", ylabel="||mean - g|| / ||g||")
    panels[0].legend()
    slopes = [interval([row[way]["slope"] for row in where(rows, T=repeats[-1])]) for way in WAYS]
    panels[1].barh(list(WAYS), [f.mean for f in slopes], xerr=[f.half for f in slopes])
    panels[1].axvline(1, color="black")
    panels[1].set(xlabel="<E[estimate], g> / ||g||^2 (1 is unbiased)")
    save(figure, path / "unbiased_estimate.png")
