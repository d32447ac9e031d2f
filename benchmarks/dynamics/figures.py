"""The pictures of a study: gaps with their intervals, and learning curves arm by arm."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.dynamics.results import REFERENCE, Study
from lightning_sfl.records.curves import mean_curve, points
from lightning_sfl.records.palette import style_of
from lightning_sfl.records.pictures import RULES

ARM_COLOURS = ("#000000", "#0072b2", "#009e73", "#d55e00", "#cc79a7")
ARM_MARKERS = ("o", "s", "^", "D", "P")


def draw(study: Study, folder: Path) -> list[Path]:
    """Write gaps.svg and curves.svg into the folder."""
    rules: Any = {**RULES, "svg.hashsalt": "dynamics"}
    with mpl.rc_context(rules):
        drawn = {"gaps.svg": gaps(study), "curves.svg": curves(study)}
        for name, figure in drawn.items():
            save(figure, folder / name)
    return [folder / name for name in drawn]


def gaps(study: Study) -> Figure:
    """One line of dots per method, one dot per arm; a line through zero is a method that lies where SFL lies."""
    figure = canvas(7.6, 1.2 + 0.62 * len(study.others()))
    axes = figure.add_subplot()
    for row, method in enumerate(study.others()):
        for place, arm in enumerate(study.arms):
            gap = study.gap(method, arm)
            height = row + 0.13 * (place - (len(study.arms) - 1) / 2)
            colour, marker = ARM_COLOURS[place], ARM_MARKERS[place]
            label = arm if row == 0 else None
            axes.errorbar(
                gap.mean, height, xerr=gap.half, fmt=marker, color=colour, markersize=5, label=label, capsize=2
            )
    axes.axvline(0, color="#777777", linewidth=1, zorder=0)
    axes.set_yticks(range(len(study.others())), study.others())
    axes.invert_yaxis()
    axes.set_xlabel(f"percentage points below {REFERENCE} in the same arm, 95 % interval over {len(study.seeds)} seeds")
    figure.legend(loc="outside lower center", ncol=len(study.arms))
    return figure


def curves(study: Study) -> Figure:
    """Accuracy against rounds, a panel per arm, means over seeds."""
    figure = canvas(3.1 * len(study.arms), 3.9)
    panels = figure.subplots(1, len(study.arms), sharey=True, squeeze=False)[0]
    for panel, arm in zip(panels, study.arms, strict=True):
        for method in study.methods:
            runs = list(study.of(method, arm).values())
            middle = mean_curve([points(run, run.accuracy_tag) for run in runs])
            style = style_of(runs[0].method)
            xs, ys = [x for x, _ in middle], [found.mean for _, found in middle]
            label = method if arm == study.arms[0] else None
            look = {"color": style.colour, "marker": style.marker, "markersize": 4, "linewidth": 1.2}
            panel.plot(xs, ys, markevery=max(1, len(xs) // 5), label=label, **look)
        panel.set_title(arm, fontsize=10)
        panel.set_xlabel("round")
        panel.set_ylim(0, 1.02)
    panels[0].set_ylabel("accuracy")
    figure.legend(loc="outside lower center", ncol=min(9, len(study.methods)))
    return figure


def canvas(width: float, height: float) -> Figure:
    """A figure that no window system knows of."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """The same bytes every time: no date, no version."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = "\n".join(line.rstrip() for line in written.getvalue().splitlines())
    path.write_text(f"{text}\n", encoding="utf-8", newline="\n")
