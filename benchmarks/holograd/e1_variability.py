"""E1: how much mini-batch gradients have in common, over batch sizes and stages of training (claim C2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.holograd import predictions, variability
from benchmarks.holograd.cells import Cell, Row, column, interval, where
from benchmarks.holograd.claims import Claim, Verdict
from benchmarks.holograd.pictures import axes, save
from benchmarks.holograd.setting import Setting
from benchmarks.holograd.tasks import Problem

FILE = "e1_gradient_variability"
STAGES = {"init": 0.0, "tenth": 0.1, "end": 1.0}
BETA = 0.9


def cells(setting: Setting) -> list[Cell]:
    """Task, seed, stage, batch size."""
    found = product(setting.tasks, setting.seeds, STAGES, setting.sizes.batch_sizes)
    return [{"task": t, "seed": s, "stage": g, "batch": b} for t, s, g, b in found]


@lru_cache(maxsize=4)
def trained(setting: Setting, task: str, seed: int, steps: int) -> tuple[Problem, Tensor]:
    """Parameters after so many steps of SGD with momentum, batches of 16."""
    problem = Problem(task, setting.data, seed)
    theta, velocity = problem.start.clone(), torch.zeros_like(problem.start)
    for t in range(steps):
        velocity = 0.9 * velocity + problem.gradient(theta, problem.batch("train", t, 16))
        theta -= 0.02 * velocity
    return problem, theta


def measure(setting: Setting, cell: Cell) -> Row:
    """Cosines of gradients at fixed parameters."""
    sizes = setting.sizes
    problem, theta = trained(setting, cell["task"], cell["seed"], round(STAGES[cell["stage"]] * sizes.train_steps))
    batches = [problem.batch(f"gradients-{cell['batch']}", i, cell["batch"]) for i in range(sizes.gradients)]
    gram = variability.gram_of(torch.stack([problem.gradient(theta, rows) for rows in batches]))
    return {
        "loss": problem.loss(theta),
        "c": variability.pairwise_cosine(gram),
        "variance_ratio": variability.variance_ratio(gram),
        "span_cosine": variability.span_cosine(gram),
        "mean_cosine": variability.mean_cosine(gram),
        "average_cosine": variability.average_cosine(gram, BETA, burn=len(batches) // 2),
    }


def slope(rows: Sequence[Row]) -> float:
    """Exponent b of c / (1 - c) ~ B^b, least squares."""
    pairs = [(math.log(row["batch"]), math.log(row["c"] / (1 - row["c"]))) for row in rows if 0 < row["c"] < 1]
    x, y = (torch.tensor(each, dtype=torch.float64) for each in zip(*pairs, strict=True))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def claims(rows: Sequence[Row], setting: Setting) -> list[Claim]:
    """C2: is there one cosine of mini-batch gradients?"""
    means = [
        interval(column(rows, "c", task=t, stage=g, batch=b)).mean
        for t, g, b in product(setting.tasks, STAGES, setting.sizes.batch_sizes)
    ]
    spread = max(means) / max(min(means), 1e-9)
    at_init = [slope(where(rows, task=t, seed=s, stage="init")) for t, s in product(setting.tasks, setting.seeds)]
    n = setting.sizes.gradients
    ratios = [row["variance_ratio"] / predictions.variance_ratio(row["c"], n) for row in rows if row["c"] > 0]
    spans = [row["span_cosine"] / predictions.span_cosine(row["c"], n - 1) for row in rows if row["c"] > 0.02]
    moving = [row["average_cosine"] / predictions.average_cosine(row["c"], BETA) for row in rows if row["c"] > 0.02]
    figures = {
        "mean cosine, smallest and largest over batch size and stage": f"{min(means):.3g} ... {max(means):.3g}",
        "exponent of c/(1-c) in the batch size, at initialisation (predicted 1)": str(interval(at_init)),
        "variance ratio / (1-c)(1-1/N)": str(interval(ratios)),
        "cosine with the span of the others / equicorrelated prediction": str(interval(spans)),
        f"cosine with the moving average of those before (beta {BETA}) / prediction": str(interval(moving)),
    }
    for stage in STAGES:
        for batch in (setting.sizes.batch_sizes[0], setting.sizes.batch_sizes[-1]):
            values = column(rows, "c", task=setting.tasks[0], stage=stage, batch=batch)
            figures[f"cosine, {setting.tasks[0]}, {stage}, batch {batch}"] = str(interval(values))
    text = "Mini-batch gradients are nearly orthogonal, with cosine about .07."
    condition = (
        f"the cosine is set by batch size and stage of training ({min(means):.2g} to {max(means):.2g} here); c/(1-c) "
        f"grows as the batch size to the power {interval(at_init).mean:.2f}"
    )
    verdict: Verdict = "refuted" if spread > 2 else "supported"
    return [Claim(2, text, verdict, condition if spread > 2 else "one value for all", figures)]


def draw(rows: Sequence[Row], setting: Setting, path: Path) -> None:
    """Cosine over the batch size, one panel a task, one line a stage; and variance ratio over cosine."""
    figure, panels = axes(len(setting.tasks) + 1)
    for panel, task in zip(panels, setting.tasks, strict=False):
        for stage in STAGES:
            found = [interval(column(rows, "c", task=task, stage=stage, batch=b)) for b in setting.sizes.batch_sizes]
            errors = [each.half for each in found]
            panel.errorbar(setting.sizes.batch_sizes, [each.mean for each in found], errors, marker="o", label=stage)
        panel.axhline(0.07, color="grey", linestyle=":", label="the claim's .07")
        panel.set(xscale="log", xlabel="batch size", ylabel="mean pairwise cosine", title=task)
        panel.legend()
    cosines = torch.linspace(0, 1, 50)
    ratio = [predictions.variance_ratio(float(c), setting.sizes.gradients) for c in cosines]
    panels[-1].plot(cosines, ratio, color="black", label="(1-c)(1-1/N)")
    panels[-1].plot([row["c"] for row in rows], [row["variance_ratio"] for row in rows], "o", markersize=3)
    panels[-1].set(xlabel="mean pairwise cosine c", ylabel="variance ratio", title="all cells")
    panels[-1].legend()
    save(figure, path / "gradient_variability.png")
