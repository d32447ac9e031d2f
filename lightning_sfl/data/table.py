"""Who holds which classes: as an array, as lines for a terminal, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lightning_sfl.core.errors import DataError
from lightning_sfl.core.population import Population

_BLUE, _GREY = "#0072B2", "#999999"
_MOST_CLASSES = 20
_MOST_DISCS = 40


def class_table(population: Population, num_classes: int) -> np.ndarray:
    """(clients, classes) counts of labels; for text every character of a row counts."""
    labels = population.y.cpu().numpy()
    return np.stack([np.bincount(labels[rows].ravel(), minlength=num_classes) for rows in population.rows])


def format_table(table: np.ndarray, sizes: list[int], max_rows: int = 20) -> str:
    """Counts of each client's classes, at most `max_rows` clients, then minimum, median and maximum over all.

    Beyond twenty classes only the number of classes and the share of the largest are shown.
    """
    held, share = (table > 0).sum(axis=1), table.max(axis=1) / np.maximum(table.sum(axis=1), 1)
    wide = table.shape[1] <= _MOST_CLASSES
    columns = np.column_stack([sizes, held, np.round(100 * share), *(table.T if wide else ())]).astype(np.int64)
    names = ["rows", "classes", "main %", *(map(str, range(table.shape[1])) if wide else ())]
    widths = [max(len(name), len(str(column.max()))) for name, column in zip(names, columns.T, strict=True)]

    def line(title: str, cells: list[str]) -> str:
        return "  ".join([f"{title:>6}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))])

    lines = [line("client", names)] + [line(str(i), [str(v) for v in row]) for i, row in enumerate(columns[:max_rows])]
    if len(columns) > max_rows:
        lines.append(f"   ... {len(columns) - max_rows} more clients")
    for title, measure in (("min", np.min), ("median", np.median), ("max", np.max)):
        lines.append(line(title, [f"{value:.0f}" for value in measure(columns, axis=0)]))
    return "\n".join(lines)


def draw_classes(population: Population, num_classes: int, path: str | Path, max_clients: int = 100) -> None:
    """Picture of the partition: sizes as bars; below, a disc for each client and class with the count as its area.

    Of many clients or classes the counts are shaded cells. One hue, so that nothing rests on telling colours apart. Of
    more than `max_clients` clients an even choice is drawn.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError('a picture needs the package matplotlib: pip install "lightning_sfl[report]"') from error
    clients = population.num_clients
    shown = np.unique(np.linspace(0, clients - 1, min(clients, max_clients)).round().astype(int))
    table = class_table(population, num_classes)[shown]
    width, height = 2.2 + 0.3 * max(12, min(len(shown), 36)), 2.3 + 0.3 * min(num_classes, 24)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 0.3 * min(num_classes, 24)])
    _draw_sizes(top, np.array(population.sizes)[shown])
    if len(shown) <= _MOST_DISCS and num_classes <= _MOST_CLASSES:
        _draw_discs(below, table)
    else:
        _draw_cells(figure, below, table)
    rows = max(1, num_classes // 20)
    below.set(xlabel="client", ylabel="class", yticks=range(0, num_classes, rows))
    below.set(xlim=(-0.8, len(shown) - 0.2), ylim=(-0.7, num_classes - 0.3))
    below.spines[["top", "right"]].set_visible(False)
    step = max(1, len(shown) // 20)
    below.set_xticks(range(0, len(shown), step), [str(i) for i in shown[::step]])
    of_all = f" (of {clients}, evenly chosen)" if len(shown) < clients else ""
    title = f"{len(shown)} clients{of_all}, {sum(population.sizes):,} rows, partition {population.fingerprint}"
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _draw_sizes(axes: Any, sizes: np.ndarray) -> None:
    axes.bar(range(len(sizes)), sizes, color=_GREY, width=0.7)
    axes.axhline(np.median(sizes), color="black", linewidth=0.8, linestyle="--")
    beside = axes.get_yaxis_transform()
    axes.text(1.005, np.median(sizes), f"median {np.median(sizes):.0f}", transform=beside, va="center", fontsize=8)
    axes.set_ylabel("rows")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_discs(axes: Any, table: np.ndarray) -> None:
    client, label = np.nonzero(table)
    largest, area = max(int(table.max()), 1), (0.27 * 72) ** 2
    axes.scatter(client, label, s=area * table[client, label] / largest, color=_BLUE, linewidths=0)
    for count in sorted({largest, max(1, round(largest / 4)), max(1, round(largest / 16))}):
        axes.scatter([], [], s=area * count / largest, color=_BLUE, linewidths=0, label=f"{count:,}")
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "labelspacing": 1.4}
    axes.legend(title="labels", frameon=False, fontsize=8, **place)
    axes.set_axisbelow(True)
    axes.grid(color="0.92", linewidth=0.6)


def _draw_cells(figure: Any, axes: Any, table: np.ndarray) -> None:
    # The square root keeps small counts visible beside the largest one; zero stays white.
    shade = np.ma.masked_equal(table.T, 0)
    ticks = np.unique(np.round(max(int(table.max()), 1) * np.array([0.01, 0.1, 0.25, 0.5, 1])).astype(int))
    edges = {"edgecolors": "0.93", "linewidth": 0.3}
    x, y, top = np.arange(len(table)), np.arange(table.shape[1]), float(np.sqrt(ticks[-1]))
    cells = axes.pcolormesh(x, y, np.sqrt(shade), cmap="Blues", vmin=-0.15 * top, vmax=top, **edges)
    bar = figure.colorbar(cells, ax=axes, pad=0.01, aspect=30, label="labels")
    bar.set_ticks(np.sqrt(ticks), labels=[f"{tick:,}" for tick in ticks])
    bar.ax.set_ylim(0, top)
