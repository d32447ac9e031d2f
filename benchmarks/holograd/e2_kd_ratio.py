"""E2: cosine of the estimate over K, and what it buys in training (claim C1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

from benchmarks.holograd import predictions
from benchmarks.holograd.cells import Cell, Row, interval, where
from benchmarks.holograd.claims import Claim, Verdict
from benchmarks.holograd.estimators import Estimator, Exact, RandomDirections, SharedDirections, cosine, train
from benchmarks.holograd.pictures import axes, save
from benchmarks.holograd.setting import Setting
from benchmarks.holograd.tasks import Problem

FILE = "e2_kd_ratio"
RATES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # of unbiased estimates
THRESHOLD = 0.01  # K / D at which the plan expects a transition


def cells(setting: Setting) -> list[Cell]:
    """First the cosines, then training runs."""
    found: list[Cell] = [
        {"part": "cosine", "task": t, "seed": s, "kind": kind, "K": k}
        for t, s, kind, k in product(setting.tasks, setting.seeds, ("random", "orthogonal"), setting.sizes.counts)
        if kind == "random" or t == setting.tasks[0]
    ]
    counts = (*setting.sizes.counts, 0)  # 0 stands for the gradient itself
    found += [{"part": "train", "task": setting.tasks[0], "seed": s, "K": k} for s, k in product(setting.seeds, counts)]
    return found


def measure(setting: Setting, cell: Cell) -> Row:
    """Either part."""
    problem = Problem(cell["task"], setting.data, cell["seed"])
    return _cosine(setting, cell, problem) if cell["part"] == "cosine" else _train(setting, cell, problem)


def _cosine(setting: Setting, cell: Cell, problem: Problem) -> Row:
    gradient = problem.gradient(problem.start, problem.batch("batch", 0, 64))
    directions = SharedDirections(cell["seed"], f"e2-{cell['K']}", problem.size, cell["kind"])
    estimator = RandomDirections(directions, cell["K"])
    trials = trials_of(setting, cell["K"])
    found = [cosine(estimator.step(gradient, t), gradient) for t in range(trials)]
    return {"D": problem.size, "cos": sum(found) / len(found), "deviation": _deviation(found)}


def trials_of(setting: Setting, k: int) -> int:
    """Fewer for many directions, whose cosine spreads less."""
    return max(4, setting.sizes.trials * 64 // max(k, 64))


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _train(setting: Setting, cell: Cell, problem: Problem) -> Row:
    """Every rate side by side on the same directions; the best counts, by the last loss."""
    estimators: list[Estimator]
    if cell["K"]:
        directions = SharedDirections(cell["seed"], f"e2-train-{cell['K']}", problem.size)
        estimators = [RandomDirections(directions, cell["K"], "unbiased") for _ in RATES]
    else:
        estimators = [Exact() for _ in RATES]
    curves = train(problem, estimators, RATES, setting.sizes.sweep_steps, 64, looks=setting.sizes.sweep_steps)
    best = min(range(len(RATES)), key=lambda i: curves[i][-1])
    return {"D": problem.size, "rate": RATES[best], "curve": curves[best]}


def expected(cell: Row) -> float:
    """Predicted mean cosine."""
    if cell["kind"] == "orthogonal":
        return math.sqrt(cell["K"] / cell["D"])
    return predictions.cosine(cell["K"], cell["D"])


def share_of_steps(curve: Sequence[float], exact: Sequence[float]) -> float:
    """Share of its steps after which the exact gradient's run had the loss that this run ends with."""
    target = curve[-1]
    for i in range(1, len(exact)):
        if exact[i] <= target:
            inside = (exact[i - 1] - target) / max(exact[i - 1] - exact[i], 1e-12)
            return max(0.0, i - 1 + inside) / (len(exact) - 1)
    return 1.0


def progress(rows: Sequence[Row], setting: Setting) -> dict[int, list[float]]:
    """K -> share of the exact run's steps, one for each seed."""
    found = {}
    for k in setting.sizes.counts:
        pairs = [[where(rows, part="train", seed=s, K=n)[0]["curve"] for n in (k, 0)] for s in setting.seeds]
        found[k] = [share_of_steps(*pair) for pair in pairs]
    return found


def exponents(shares: dict[int, list[float]], size: int) -> tuple[list[float], list[float]]:
    """Local exponents d log(share) / d log(K) on intervals below the threshold, and on those that reach above it."""
    counts = sorted(shares)
    below: list[float] = []
    above: list[float] = []
    for low, high in pairwise(counts):
        means = [max(interval(shares[k]).mean, 1e-6) for k in (low, high)]
        local = math.log(means[1] / means[0]) / math.log(high / low)
        (below if high / size < THRESHOLD else above).append(local)
    return below, above


def claims(rows: Sequence[Row], setting: Setting) -> list[Claim]:
    """C1: the cosine's law, and whether anything happens at K / D = .01."""
    cosines = where(rows, part="cosine")
    random = where(cosines, kind="random")
    deviations = [
        abs(row["cos"] / expected(row) - 1)
        / (3 / math.sqrt(2 * row["K"] * trials_of(setting, row["K"])) + 0.5 / row["K"])
        for row in random
    ]
    single = [abs(row["cos"] / expected(row) - 1) * math.sqrt(2 * row["K"]) / 3 for row in random]
    spread = [row["deviation"] / row["cos"] / predictions.cosine_deviation(row["K"], row["D"]) for row in random]
    shares = progress(rows, setting)
    size = where(rows, part="train")[0]["D"]
    below, above = exponents(shares, size)
    largest = max([*below, *above])
    law = max(single) < 1
    figures = {
        "largest |cos / sqrt(K/(K+D-1)) - 1| in units of 3/sqrt(2K)": f"{max(single):.2g}",
        "the same for the mean of the trials, in units of its own 3 deviations": f"{max(deviations):.2g}",
        "relative deviation of the cosine / predicted": str(interval(spread)),
        "cosine / prediction, orthogonal": str(
            interval([r["cos"] / expected(r) for r in where(cosines, kind="orthogonal")])
        ),
        "largest local exponent of progress in K (1 is proportional; a transition is a larger one)": f"{largest:.2f}",
        **{f"progress at K={k} (K/D={k / size:.4f})": str(interval(v)) for k, v in shares.items()},
        "d_eff of progress K/(K+d_eff), by K": ", ".join(f"{k}: {effective(k, v):.0f}" for k, v in shares.items()),
        "D": str(size),
    }
    verdict: Verdict
    if not law:
        verdict, condition = "refuted", "the cosine does not follow sqrt(K/(K+D-1))"
    elif largest > 2:
        verdict, condition = "supported", "the cosine's law holds, and progress jumps with K"
    else:
        verdict = "true under a condition"
        widths = [effective(k, v) for k, v in shares.items()]
        condition = (
            "cos = sqrt(K/(K+D-1)) holds and concentrates; that K/D must reach .01 does not: progress per step grows "
            f"smoothly, as K/(K+d_eff) with d_eff {min(widths):.0f} to {max(widths):.0f} where D={size}, without jumps"
        )
    return [Claim(1, "cos(estimate, g) = sqrt(K/D), so K/D >= .01 is needed.", verdict, condition, figures)]


def effective(k: int, shares: Sequence[float]) -> float:
    """d_eff in share = K / (K + d_eff)."""
    mean = interval(shares).mean
    return k * (1 - mean) / max(mean, 1e-6)


def draw(rows: Sequence[Row], setting: Setting, path: Path) -> None:
    """Cosines against the law; progress against K / D."""
    figure, panels = axes(2)
    for task, kind in product(setting.tasks, ("random", "orthogonal")):
        found = where(rows, part="cosine", task=task, kind=kind)
        if not found:
            continue
        panels[0].plot(
            [r["K"] / r["D"] for r in found],
            [r["cos"] for r in found],
            "o" if kind == "random" else "x",
            label=f"{task}, {kind}",
        )
    law = [10 ** (i / 10) for i in range(-40, -9)]
    panels[0].plot(law, [math.sqrt(x / (1 + x)) for x in law], color="black", label="sqrt(K/(K+D))")
    panels[0].set(xscale="log", yscale="log", xlabel="K / D", ylabel="cosine with the gradient")
    shares = progress(rows, setting)
    size = where(rows, part="train")[0]["D"]
    found_shares = [interval(v) for v in shares.values()]
    panels[1].errorbar(
        [k / size for k in shares],
        [f.mean for f in found_shares],
        [f.half for f in found_shares],
        marker="o",
        label="measured",
    )
    d_eff = sorted(effective(k, v) for k, v in shares.items())[len(shares) // 2]
    panels[1].plot(
        [k / size for k in shares], [k / (k + d_eff) for k in shares], color="black", label=f"K/(K+{d_eff:.0f})"
    )
    panels[1].set(xscale="log", yscale="log", xlabel="K / D", ylabel="progress per step / that of the gradient")
    for panel in panels:
        panel.axvline(THRESHOLD, color="grey", linestyle=":")
        panel.legend(fontsize=8)
    save(figure, path / "kd_ratio_sweep.png")
