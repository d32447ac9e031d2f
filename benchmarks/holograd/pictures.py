"""Panels side by side, and PNG files without dates in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def axes(count: int) -> tuple[Any, list[Any]]:
    """A figure with so many panels in a row; without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * count, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    return figure, list(panels)


def save(figure: Any, path: Path) -> None:
    """Write the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
