"""How far the server half goes per server step."""

from __future__ import annotations

from lightning_sfl.measures.gram import quotient


def magnitude_per_step(move: float, steps: int, branches: int = 1) -> float:
    """Length of the round's move of the (merged) server half over the steps of one branch; NaN without a step.

    With several copies `steps` counts those of all, while the move is that of their mean.
    """
    return quotient(move * branches, steps)


def path_per_step(path: float, steps: int) -> float:
    """Summed length of all single steps over their number: does not shrink when steps cancel; NaN without a step."""
    return quotient(path, steps)
