"""E6: do a worker's scalars come out the same for a verifier, and do lies not? (claim C8)"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.holograd.cells import Cell, Row, column, interval, where
from benchmarks.holograd.claims import Claim, Verdict
from benchmarks.holograd.estimators import seeds_of
from benchmarks.holograd.pictures import axes, save
from benchmarks.holograd.setting import Setting
from benchmarks.holograd.tasks import Problem
from lightning_sfl.core.holograd.directions import Directions
from lightning_sfl.core.holograd.projection import chain_loss, project_loss
from lightning_sfl.core.holograd.verification import Verifier, detection_probability

FILE = "e6_pogp"
COUNT, BATCH = 64, 32
TOLERANCE, COARSE, ABSOLUTE = 1e-4, 5e-2, 1e-4
HONEST = {
    "same code": "the same code again",
    "threads": "two threads",
    "batch order": "rows in another order",
    "forward mode": "forward mode instead of a backward pass",
    "double": "double precision",
    "accelerator": "another device",
    "bf16": "bfloat16 autocast",
    "differences": "central differences",
}
LIES = {
    "zeros": "a = 0",
    "per mille": "1.001 a",
    "per cent": "1.01 a",
    "stale": "parameters of a step before",
    "other batch": "other rows",
    "other seed": "directions of another seed",
}
CHECKED = (0.0, 0.01, 0.05, 0.1, 0.2)


def cells(setting: Setting) -> list[Cell]:
    """Task and seed, all sorts of workers together; then the chance of being caught."""
    found: list[Cell] = [{"part": "proofs", "task": t, "seed": s} for t, s in product(setting.tasks, setting.seeds)]
    found += [{"part": "caught", "p": p, "q": q, "seed": s} for p, q, s in product(CHECKED, (0.1, 0.2), setting.seeds)]
    return found


def measure(setting: Setting, cell: Cell) -> Row:
    """Either part."""
    return _caught(setting, cell) if cell["part"] == "caught" else _proofs(setting, cell)


def _caught(setting: Setting, cell: Cell) -> Row:
    """Share of uploads with round(q K) bad proofs of which at least one is checked."""
    verifier, invalid, trials = Verifier(cell["p"], seed=cell["seed"]), round(cell["q"] * COUNT), setting.sizes.proofs
    caught = sum(bool((verifier.chosen(t, 0, COUNT) < invalid).any()) for t in range(trials)) / trials
    return {"caught": caught, "predicted": detection_probability(cell["p"], invalid)}


def _proofs(setting: Setting, cell: Cell) -> Row:
    """What the verifier makes of each sort of worker, over many uploads; the slow ones send a quarter of them."""
    problem = Problem(cell["task"], setting.data, cell["seed"])
    uploads = max(4, setting.sizes.proofs // COUNT)
    who = [name for name in (*HONEST, *LIES) if name != "accelerator" or torch.cuda.is_available()]
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in who}
    for t in range(uploads):
        rows = problem.batch("proofs", t, BATCH)
        own = scalars(problem, problem.start, rows, cell["seed"], t)
        for name in who:
            if t % 4 == 0 or name not in ("forward mode", "differences"):
                pairs[name].append((_sent(problem, name, rows, cell["seed"], t, own), own))
    return {"D": problem.size, "workers": {name: _judged(name, found) for name, found in pairs.items()}}


def _judged(who: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Quantiles of |a - a*| / s and the share that is accepted."""
    verifier = Verifier(1.0, COARSE if who == "bf16" else TOLERANCE)
    scales = [float(own.double().square().mean().sqrt()) for _, own in pairs]
    errors = torch.cat([(sent.double() - own).abs() / s for (sent, own), s in zip(pairs, scales, strict=True)])
    rejected = sum(verifier.compare(sent, own, COUNT).rejected for sent, own in pairs)
    absolute = sum(int(((sent - own).abs() <= ABSOLUTE).sum()) for sent, own in pairs)
    return {
        "quantile": float(np.quantile(errors.numpy(), 0.999)), "largest": float(errors.max()),
        "accepted": 1 - rejected / len(errors), "accepted_absolute": absolute / len(errors),
    }  # fmt: skip


@lru_cache(maxsize=4)
def directions_at(seed: int, t: int, like: tuple[int, torch.dtype, str]) -> Directions:
    """Drawn once for all workers of an upload."""
    size, dtype, device = like
    return Directions(seeds_of(seed, "e6", t, COUNT), torch.zeros(0, size, dtype=dtype, device=device))


def scalars(problem: Problem, theta: Tensor, rows: np.ndarray, seed: int, t: int) -> Tensor:
    """What a worker sends."""
    directions = directions_at(seed, t, (problem.size, torch.float32, "cpu"))
    return directions.project(problem.gradient(theta, rows)[None])[0]


def _sent(problem: Problem, who: str, rows: np.ndarray, seed: int, t: int, own: Tensor) -> Tensor:
    """What arrives from a worker of this sort."""
    theta = problem.start
    ways: dict[str, Callable[[], Tensor]] = {
        "same code": lambda: _again(problem, rows, seed, t),
        "threads": lambda: _threaded(lambda: scalars(problem, theta, rows, seed, t)),
        "batch order": lambda: scalars(problem, theta, rows[::-1].copy(), seed, t),
        "forward mode": lambda: _without_backward(problem, rows, seed, t, "jvp"),
        "differences": lambda: _without_backward(problem, rows, seed, t, "fd"),
        "double": lambda: _elsewhere(problem, rows, seed, t, torch.float64, "cpu"),
        "accelerator": lambda: _elsewhere(problem, rows, seed, t, torch.float32, "cuda"),
        "bf16": lambda: _autocast(lambda: scalars(problem, theta, rows, seed, t)),
        "zeros": lambda: torch.zeros_like(own),
        "per mille": lambda: 1.001 * own,
        "per cent": lambda: 1.01 * own,
        "stale": lambda: scalars(problem, theta + 0.1 * problem.gradient(theta, rows), rows, seed, t),
        "other batch": lambda: scalars(problem, theta, problem.batch("others", t, BATCH), seed, t),
        "other seed": lambda: scalars(problem, theta, rows, seed + 1000, t),
    }
    return ways[who]()


def _again(problem: Problem, rows: np.ndarray, seed: int, t: int) -> Tensor:
    """With directions drawn anew."""
    directions_at.cache_clear()
    return scalars(problem, problem.start, rows, seed, t)


def _threaded(compute: Callable[[], Tensor]) -> Tensor:
    torch.set_num_threads(2)
    try:
        return compute()
    finally:
        torch.set_num_threads(1)


def _autocast(compute: Callable[[], Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return compute()


def _without_backward(problem: Problem, rows: np.ndarray, seed: int, t: int, way: str) -> Tensor:
    directions = directions_at(seed, t, (problem.size, torch.float32, "cpu"))
    index = torch.from_numpy(rows)
    labels = problem.y[index].flatten()
    loss = chain_loss(
        (problem.net,), problem.x[index], lambda out: cross_entropy(out.flatten(0, -2), labels), lambda i: None
    )
    return project_loss(loss, list(problem.net.parameters()), directions, way)  # type: ignore[arg-type]


def _elsewhere(problem: Problem, rows: np.ndarray, seed: int, t: int, dtype: torch.dtype, device: str) -> Tensor:
    """The same with network, data and directions in another precision or on another device."""
    index = torch.from_numpy(rows)
    x = problem.x[index].to(device)
    x = x.to(dtype) if x.is_floating_point() else x
    labels = problem.y[index].flatten().to(device)
    point = [p.detach().to(device, dtype) for p in problem.net.parameters()]
    loss = chain_loss((problem.net,), x, lambda out: cross_entropy(out.flatten(0, -2), labels), lambda i: None)
    directions = directions_at(seed, t, (problem.size, dtype, device))
    return project_loss(loss, point, directions, "grad").cpu()


def judgements(rows: Sequence[Row]) -> list[Row]:
    """One row for each task, seed and sort of worker."""
    found = where(rows, part="proofs")
    return [{"task": row["task"], "who": who, **judged} for row in found for who, judged in row["workers"].items()]


def zeros_pass(size: float) -> float:
    """Share of zeros that an absolute tolerance of 1e-4 accepts, where ||g|| = 1: honest scalars are N(0, 1/D)."""
    return math.erf(ABSOLUTE * math.sqrt(size / 2))


def claims(rows: Sequence[Row], setting: Setting) -> list[Claim]:
    """C8: scalars are reproducible."""
    proofs = judgements(rows)
    figures = {}
    for who, label in (HONEST | LIES).items():
        found = where(proofs, who=who)
        if not found:
            figures[f"{label}"] = "not run: there is no other device here"
            continue
        worst, rate = max(column(found, "quantile")), interval(column(found, "accepted"))
        figures[f"{label}: .999 quantile of |a-a*|/s, accepted"] = f"{worst:.2g}, {rate}"
    exact = max(column(proofs, "largest", who="same code")) == 0
    reproducible = ("threads", "batch order", "forward mode", "double", "accelerator")
    close = max(row["quantile"] for row in proofs if row["who"] in reproducible) < TOLERANCE
    lies = ("zeros", "stale", "other batch", "other seed")
    refused = max(row["accepted"] for row in proofs if row["who"] in lies) < 0.01
    pairs = [(row["caught"], row["predicted"]) for row in where(rows, part="caught")]
    figures["largest |caught - (1-(1-p)^qm)|"] = f"{max(abs(c - p) for c, p in pairs):.2g}"
    for p in CHECKED:
        rate = interval(column(rows, "caught", part="caught", p=p, q=0.2))
        figures[f"20 % bad proofs of {COUNT}, checked with p={p}: caught, at a cost of {p:.0%} of the projections"] = (
            str(rate)
        )
    figures["zeros accepted at the paper's absolute tolerance of 1e-4, here"] = str(
        interval(column(proofs, "accepted_absolute", who="zeros"))
    )
    figures["the same where ||g||=1, D=1.6M, 16M, 124M (predicted)"] = ", ".join(
        f"{zeros_pass(d):.1%}" for d in (1.6e6, 16e6, 124e6)
    )
    holds = exact and close and refused
    coarse = interval(column(proofs, "accepted", who="bf16")).mean
    condition = (
        f"bit for bit on one machine and code path; on others within {TOLERANCE:.0e} of the scalars' rms in float32, "
        f"which also refuses zeros; bfloat16 is too coarse ({coarse:.0%} of the honest pass at {COARSE:.0e})"
        if coarse < 0.999
        else f"bit for bit on one machine and code path; on others within {TOLERANCE:.0e} of the scalars' rms in "
        f"float32, {COARSE:.0e} in bfloat16, which also refuses zeros"
    )
    verdict: Verdict = "true under a condition" if holds else "refuted"
    return [
        Claim(
            8,
            "Scalars are reproducible, so they can be verified.",
            verdict,
            condition if holds else "see the figures",
            figures,
        )
    ]


def draw(rows: Sequence[Row], setting: Setting, path: Path) -> None:
    """Errors of honest workers and of liars against the tolerances; chance of being caught."""
    figure, panels = axes(2)
    proofs = judgements(rows)
    who = [name for name in (*HONEST, *LIES) if where(proofs, who=name)]
    values = [max([1e-9, *column(proofs, "quantile", who=w)]) for w in who]
    panels[0].barh(who, values, color=["tab:blue" if name in HONEST else "tab:red" for name in who])
    panels[0].invert_yaxis()
    for line, label in ((TOLERANCE, "1e-4"), (COARSE, "5e-2 (bf16)")):
        panels[0].axvline(line, color="black", linestyle="--", label=label)
    panels[0].set(xscale="log", xlim=(1e-9, 10), xlabel=".999 quantile of |a - a*| / s")
    panels[0].legend(fontsize=7)
    for q in (0.1, 0.2):
        found = [interval(column(rows, "caught", part="caught", p=p, q=q)) for p in CHECKED]
        panels[1].errorbar(
            CHECKED, [f.mean for f in found], [f.half for f in found], fmt="o", label=f"{q:.0%} bad proofs"
        )
        fine = [i / 200 for i in range(41)]
        panels[1].plot(fine, [detection_probability(p, round(q * COUNT)) for p in fine], color="black", linewidth=0.8)
    panels[1].set(xlabel="chance that a proof is checked, and cost", ylabel="chance of being caught")
    panels[1].legend()
    save(figure, path / "proof_tolerance.png")
