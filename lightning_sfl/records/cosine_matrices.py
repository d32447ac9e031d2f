"""Heat maps of the cosines between clients' updates, at up to four rounds; clients of one main label together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lightning_sfl.records.figures import Row
from lightning_sfl.records.pictures import DIVERGING, RULES, Picture, as_svg
from lightning_sfl.records.report import visit_key
from lightning_sfl.records.runs import Run
from lightning_sfl.records.words import wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TAG = "align/cos_matrix"
MOST = 4
TITLE = "Cosines between the clients' updates"
CAPTION = (
    "A row and a column for each client of the round: blue against, white across, red alike, grey unknown. Clients "
    "stand by the label that most of their rows have, which the left edge names, then by their number; by their number "
    "alone where labels are no classes. First seed of each configuration."
)


@dataclass(frozen=True)
class Matrix:
    """The cosines of one round in the order in which they are shown; labels: main label of each client, or None."""

    round: int
    labels: list[int | None]
    values: list[list[float]]


def matrix_of(round: int, found: dict[str, Any]) -> Matrix:
    """What a record holds of one round: `clients`, `labels`, and `upper`, row by row what stands right of the
    diagonal.
    """
    size = len(found["clients"])
    values, upper = [[1.0] * size for _ in range(size)], iter(found["upper"])
    for i in range(size):
        for j in range(i + 1, size):
            value = next(upper)
            values[i][j] = values[j][i] = math.nan if value is None else value
    labels = found["labels"]
    order = sorted(range(size), key=lambda i: (labels[i] is None, labels[i] or 0, visit_key(found["clients"][i])))
    return Matrix(round, [labels[i] for i in order], [[values[i][j] for j in order] for i in order])


def matrices_of(run: Run) -> list[Matrix]:
    """At most four, spread over the rounds that have one, the first and the last among them."""
    known = [r for r in run.records if TAG in r.get("matrices", {})]
    last = len(known) - 1
    chosen = known if len(known) <= MOST else [known[round(i * last / (MOST - 1))] for i in range(MOST)]
    return [matrix_of(record["round"], record["matrices"][TAG]) for record in chosen]


def cosine_matrices(rows: Sequence[Row]) -> list[Picture]:
    """One picture, a line of heat maps per configuration; none where nothing is recorded."""
    known = [(row, matrices_of(row.group.runs[0])) for row in rows]
    shown = [(row, matrices) for row, matrices in known if matrices]
    if not shown:
        return []
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    colours = LinearSegmentedColormap.from_list("diverging", DIVERGING).with_extremes(bad="#c8c8c8")
    rules: Any = {**RULES, "axes.grid": False, "font.size": 9, "axes.spines.left": False, "axes.spines.bottom": False}
    with mpl.rc_context(rules):
        height = 1.35 * len(shown) + 0.8
        figure = Figure(figsize=(5.4, height))  # places by hand: a layout of so many panels takes a second
        edges = {"left": 0.11, "right": 0.99, "bottom": 0.75 / height, "top": 1 - 0.25 / height}
        panels = figure.subplots(len(shown), MOST, squeeze=False, gridspec_kw={**edges, "wspace": 0.14, "hspace": 0.2})
        for line, (row, matrices) in zip(panels, shown, strict=True):
            for axes, matrix in zip(line, matrices, strict=False):
                image = axes.imshow(matrix.values, cmap=colours, vmin=-1, vmax=1, interpolation="none")
                _edges(axes, matrix)
            for axes in line[len(matrices) :]:
                axes.set_axis_off()
            line[0].set_ylabel(wrapped(row.label, 20), fontsize=8)
        bar = figure.add_axes((0.25, 0.45 / height, 0.5, 0.1 / height))
        figure.colorbar(image, cax=bar, orientation="horizontal", label="cosine")
        lacking = [row.label for row, matrices in known if not matrices]
        left_out = f" Not recorded for: {', '.join(lacking)}." if lacking else ""
        return [Picture("cosine_matrices", TITLE, CAPTION + left_out, as_svg(figure, "cosine_matrices", TITLE))]


def _edges(axes: Axes, matrix: Matrix) -> None:
    """Which round it is, and where the clients of one main label end."""
    axes.set_title(f"round {matrix.round + 1}", fontsize=8, pad=2)
    ticks, names, place = [], [], 0
    for label, members in groupby(matrix.labels):
        size = len(list(members))
        if label is not None:
            ticks.append(place + (size - 1) / 2)
            names.append(str(label))
        place += size
        if place < len(matrix.labels):
            axes.axhline(place - 0.5, color="#555555", linewidth=0.4)
            axes.axvline(place - 0.5, color="#555555", linewidth=0.4)
    axes.set_xticks([])
    axes.set_yticks(ticks, names, fontsize=6.5)
    axes.tick_params(length=0, pad=1)
