"""E7: which rule withstands which liars, with shared directions and with each client's own (claim C7)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.holograd import predictions
from benchmarks.holograd.cells import Cell, Row, column, interval, where
from benchmarks.holograd.claims import Claim, Verdict
from benchmarks.holograd.estimators import cosine, seeds_of
from benchmarks.holograd.legacy import trimmed_over_directions
from benchmarks.holograd.pictures import axes, save
from benchmarks.holograd.setting import Setting
from benchmarks.holograd.tasks import Problem
from lightning_sfl.core.byzantine import Byzantine
from lightning_sfl.core.holograd.directions import Directions
from lightning_sfl.core.holograd.robust import Robust
from lightning_sfl.core.holograd.synthesis import factor
from lightning_sfl.core.randomness import stream

FILE = "e7_byzantine"
COUNT, OWN_COUNT, BATCH, RATE = 64, 16, 32, 0.1
RULES = {
    "mean": Robust(), "trim .1": Robust("trimmed_mean", 0.1), "trim .2": Robust("trimmed_mean", 0.2),
    "trim .3": Robust("trimmed_mean", 0.3), "median": Robust("median"),
}  # fmt: skip
OUTLIERS = {
    "noise 100": Byzantine(0.2, "noise", 100.0), "one-sided 100": Byzantine(0.2, "one_sided", 100.0),
    "scale 100": Byzantine(0.2, "scale", 100.0), "sign-flip 10": Byzantine(0.2, "sign_flip", 10.0),
}  # fmt: skip
INSIDE = {"sign-flip 1": Byzantine(0.2, "sign_flip", 1.0), "inner product 1": Byzantine(0.2, "inner_product", 1.0)}
ATTACKS = OUTLIERS | INSIDE
NAMED = 0.2  # the claim's share of liars
TRAINED = ("mean", "trim .1", "trim .2", "median")
SHARE_OF = {"trim .1": 0.1, "trim .2": 0.2, "trim .3": 0.3, "median": 0.49}


def cells(setting: Setting) -> list[Cell]:
    """Errors of all rules on one honest course; courses of their own at 20 % liars; directions of one's own."""
    task, seeds = setting.tasks[0], setting.seeds
    fractions = (0.0, *setting.sizes.fractions)
    found: list[Cell] = [
        {"part": "error", "task": task, "fraction": f, "seed": s} for f, s in product(fractions, seeds)
    ]
    found += [
        {"part": "train", "task": task, "attack": a, "rule": r, "seed": s}
        for a, r, s in product(("none", *ATTACKS), TRAINED, seeds)
    ]
    return found + [{"part": "own directions", "task": task, "seed": s} for s in seeds]


def measure(setting: Setting, cell: Cell) -> Row:
    """One of the three parts."""
    problem = Problem(cell["task"], setting.data, cell["seed"])
    parts = {"error": _errors, "train": _train, "own directions": _own}
    return parts[cell["part"]](setting, cell, problem)


class Clients:
    """Rows dealt evenly; each step a batch of one's own."""

    def __init__(self, problem: Problem, count: int) -> None:
        self.problem, self.count = problem, count
        self.shards = np.array_split(stream(problem.seed, "shards").permutation(len(problem.y)), count)

    def gradients(self, theta: Tensor, t: int) -> Tensor:
        """One row a client."""
        draws = [
            stream(self.problem.seed, "client-batch", t, i).choice(shard, BATCH) for i, shard in enumerate(self.shards)
        ]
        return torch.stack([self.problem.gradient(theta, rows) for rows in draws])

    def lying(self, fraction: float) -> list[bool]:
        """The first so many."""
        return [i < round(fraction * self.count) for i in range(self.count)]


def _directions(problem: Problem, purpose: str, t: int, count: int) -> Directions:
    return Directions(seeds_of(problem.seed, purpose, t, count), torch.zeros(0, problem.size))


def _errors(setting: Setting, cell: Cell, problem: Problem) -> Row:
    """For each attack and rule: error to the honest mean gradient over that without liars, and cosine."""
    clients, theta = Clients(problem, setting.sizes.clients), problem.start.clone()
    lying = clients.lying(cell["fraction"])
    honest_rows = [i for i, lies in enumerate(lying) if not lies]
    shares = torch.full((len(lying),), 1 / len(lying))
    scale = factor(COUNT, problem.size, "random", "unbiased")
    found: dict[str, list[tuple[float, float, float]]] = {}
    for t in range(max(2, setting.sizes.robust_steps // 4)):
        gradients = clients.gradients(theta, t)
        directions = _directions(problem, "e7", t, COUNT)
        sent, true = directions.project(gradients), gradients[honest_rows].mean(0)
        honest = scale * directions.combine(sent[honest_rows].mean(0))
        least = float((honest - true).norm())
        for (attack, byzantine), (name, rule) in product(ATTACKS.items(), RULES.items()):
            received = byzantine.corrupt(sent, lying, problem.seed, t)
            estimate = scale * directions.combine(rule.aggregate(received, shares))
            errors = (float((estimate - true).norm()) / least, cosine(estimate, honest), cosine(estimate, true))
            found.setdefault(f"{attack} | {name}", []).append(errors)
        theta -= RATE * honest
    means = {key: torch.tensor(values, dtype=torch.float64).mean(0).tolist() for key, values in found.items()}
    return {"ratio": {k: v[0] for k, v in means.items()}, "cos_honest": {k: v[1] for k, v in means.items()},
            "cos": {k: v[2] for k, v in means.items()}}  # fmt: skip


def _train(setting: Setting, cell: Cell, problem: Problem) -> Row:
    """Loss after some steps with 20 % liars; without a finite one, infinity is written as 1e9."""
    clients, theta = Clients(problem, setting.sizes.clients), problem.start.clone()
    lying = clients.lying(NAMED if cell["attack"] != "none" else 0.0)
    shares = torch.full((len(lying),), 1 / len(lying))
    scale = factor(COUNT, problem.size, "random", "unbiased")
    for t in range(setting.sizes.robust_steps):
        gradients = clients.gradients(theta, t)
        directions = _directions(problem, "e7-train", t, COUNT)
        sent = directions.project(gradients)
        if cell["attack"] != "none":
            sent = ATTACKS[cell["attack"]].corrupt(sent, lying, problem.seed, t)
        theta -= RATE * scale * directions.combine(RULES[cell["rule"]].aggregate(sent, shares))
        if not problem.loss(theta) < 1e3:
            return {"loss": 1e9, "start": problem.loss(problem.start)}
    return {"loss": problem.loss(theta), "start": problem.loss(problem.start)}


def _own(setting: Setting, cell: Cell, problem: Problem) -> Row:
    """Each client its own directions, all honest: what trimming over all scalars does to the estimate."""
    clients = Clients(problem, setting.sizes.clients)
    gradients = clients.gradients(problem.start, 0)
    true = gradients.mean(0)
    slopes: dict[str, list[float]] = {"mean": [], "trim .1": [], "trim .2": []}
    for t in range(max(2, setting.sizes.robust_steps // 8)):
        sets = [_directions(problem, f"e7-own-{i}", t, OWN_COUNT) for i in range(len(gradients))]
        scalars = torch.cat([each.project(g[None])[0] for each, g in zip(sets, gradients, strict=True)])
        for name, trim in (("mean", 0.0), ("trim .1", 0.1), ("trim .2", 0.2)):
            coefficients = trimmed_over_directions(scalars, trim).view(len(sets), OWN_COUNT)
            parts = [each.combine(row) for each, row in zip(sets, coefficients, strict=True)]
            estimate = problem.size * torch.stack(parts).sum(0)
            slopes[name].append(float(estimate @ true / true.square().sum()))
    return {"slope": {name: sum(values) / len(values) for name, values in slopes.items()}}


def ratio(rows: Sequence[Row], fraction: float, attack: str, rule: str) -> list[float]:
    """Error over the honest error, one for each seed."""
    return [row["ratio"][f"{attack} | {rule}"] for row in where(rows, part="error", fraction=fraction)]


def claims(rows: Sequence[Row], setting: Setting) -> list[Claim]:
    """C7: trimming a tenth at each end removes 20 % liars."""
    named = interval(ratio(rows, NAMED, "one-sided 100", "trim .1"))
    enough = {
        (f, a, r): interval(ratio(rows, f, a, r)).mean
        for f, a, r in product(setting.sizes.fractions, OUTLIERS, SHARE_OF)
        if SHARE_OF[r] >= f
    }
    inside = {
        a: interval([row["cos_honest"][f"{a} | trim .2"] for row in where(rows, part="error", fraction=NAMED)])
        for a in INSIDE
    }
    losses = {
        (a, r): interval([min(v, 1e3) for v in column(rows, "loss", part="train", attack=a, rule=r)])
        for a, r in product(("none", *ATTACKS), TRAINED)
    }
    figures = {
        "error / honest error, 20 % one-sided liars, trim .1": str(named),
        "error / honest error, 20 % random +-100, trim .1": str(interval(ratio(rows, NAMED, "noise 100", "trim .1"))),
        "the same, trim .2, one-sided": str(interval(ratio(rows, NAMED, "one-sided 100", "trim .2"))),
        "the same, mean, one-sided": str(interval(ratio(rows, NAMED, "one-sided 100", "mean"))),
        "largest error / honest error where tau >= share of liars, outliers": f"{max(enough.values()):.3g}",
        **{f"cosine with the honest estimate, 20 % {a}, trim .2": str(c) for a, c in inside.items()},
        **{
            f"loss after training, 20 % {a}, {r}": str(v) if v.mean < 900 else "diverged"
            for (a, r), v in losses.items()
        },
        "loss before training": f"{column(rows, 'start', part='train')[0]:.3g}",
    }
    for name in ("mean", "trim .1", "trim .2"):
        slopes = interval([row["slope"][name] for row in where(rows, part="own directions")])
        figures[f"own directions, nobody lies, {name}: E<estimate, g>/||g||^2"] = str(slopes)
    figures["predicted with 10 %, 20 % trimmed"] = (
        f"{predictions.trimming_bias(0.1):.3f}, {predictions.trimming_bias(0.2):.3f}"
    )
    breaks, defended = named.low > 2, max(enough.values()) <= 2
    condition = (
        "with shared directions, at least the liars' share trimmed at each end, and lies that are outliers; lies "
        "inside the range stay, and over directions of one's own trimming is itself a bias"
    )
    verdict: Verdict = "refuted" if breaks else "supported"
    return [
        Claim(
            7, "A trimmed mean with tau = .1 removes 20 % liars.", verdict,
            f"as stated; true {condition}" if breaks and defended else "see the figures", figures,
        )
    ]  # fmt: skip


def draw(rows: Sequence[Row], setting: Setting, path: Path) -> None:
    """Errors by rule and outlying lie at 20 % (others show in the loss only); errors over the share of liars."""
    figure, panels = axes(2)
    fraction = NAMED if NAMED in setting.sizes.fractions else setting.sizes.fractions[-1]
    table = [[interval(ratio(rows, fraction, a, r)).mean for r in RULES] for a in OUTLIERS]
    shown = panels[0].imshow(np.log10(np.array(table)), cmap="RdYlGn_r", vmin=0, vmax=2, aspect="auto")
    panels[0].set_xticks(range(len(RULES)), list(RULES))
    panels[0].set_yticks(range(len(OUTLIERS)), list(OUTLIERS))
    for i, j in product(range(len(OUTLIERS)), range(len(RULES))):
        panels[0].text(j, i, f"{table[i][j]:.2g}", ha="center", va="center", fontsize=8)
    panels[0].set(title=f"error / honest error, {fraction:.0%} liars")
    figure.colorbar(shown, ax=panels[0], label="log10")
    fractions = (0.0, *setting.sizes.fractions)
    for rule in RULES:
        found = [interval(ratio(rows, f, "one-sided 100", rule)) for f in fractions]
        panels[1].errorbar(fractions, [f.mean for f in found], [f.half for f in found], marker="o", label=rule)
    panels[1].axhline(2, color="grey", linestyle=":")
    panels[1].set(yscale="log", xlabel="share of liars, all sending 100", ylabel="error / honest error")
    panels[1].legend()
    save(figure, path / "byzantine_tolerance.png")
