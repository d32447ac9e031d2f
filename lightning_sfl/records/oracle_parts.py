"""What clients' distance from the oracle consists of: what averaging leaves of it, and what averaging evens out."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sfl.records.curves import mean
from lightning_sfl.records.figures import Row
from lightning_sfl.records.palette import style_of
from lightning_sfl.records.pictures import RULES, Picture, as_svg
from lightning_sfl.records.runs import Run

TITLE = "Distance from the oracle, in parts"
CAPTION = (
    "Squared distance of the clients' gradients from the oracle over its square, mean over rounds and seeds. Full: "
    "bias, what stays after averaging; pale: spread, what averaging evens out."
)


def parts_of(run: Run) -> tuple[float, float] | None:
    """Bias and spread of a run over the square of the oracle, means over its rounds; None where none has both."""
    found = []
    for record in run.records:
        bias, spread, whole, relative = (
            record["scalars"].get(f"oracle/client_{name}") for name in ("bias", "spread", "G", "G_rel")
        )
        if None not in (bias, spread, relative) and whole:
            found.append((bias * relative / whole, spread * relative / whole))
    middles = [mean([pair[place] for pair in found]) for place in (0, 1)]
    return None if middles[0] is None or middles[1] is None else (middles[0], middles[1])


def oracle_parts(rows: Sequence[Row]) -> list[Picture]:
    """A bar per row; no picture where no run has asked."""
    known = [(row, [pair for run in row.group.runs if (pair := parts_of(run)) is not None]) for row in rows]
    shown = [(row, [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]) for row, pairs in known if pairs]
    if not shown:
        return []
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RULES):  # type: ignore[arg-type]
        figure = Figure(figsize=(5.4, 0.34 * len(shown) + 0.9), layout="constrained")
        axes = figure.subplots()
        for place, (row, (bias, spread)) in enumerate(shown):
            colour = style_of(row.group.method, row.group.variant).colour
            axes.barh(place, bias, color=colour, height=0.7)
            axes.barh(place, spread, left=bias, color=colour, alpha=0.35, height=0.7)
        axes.set_yticks(range(len(shown)), [row.label for row, _ in shown])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("bias + spread, over the oracle's square")
        lacking = [row.label for row, pairs in known if not pairs]
        left_out = f" Not shown, since there is nothing to show: {', '.join(lacking)}." if lacking else ""
        return [Picture("oracle_parts", TITLE, CAPTION + left_out, as_svg(figure, "oracle_parts", TITLE))]
