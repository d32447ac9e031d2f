"""How much is replayed: a proportion that follows the squared norm of the server's gradients (MultiSFL)."""

from __future__ import annotations

from typing import Literal

ProportionRule = Literal["paper", "abs_ratio", "one_plus_delta"]
RULES = ("paper", "abs_ratio", "one_plus_delta")
TINY = 1e-12


def next_proportion(
    rule: ProportionRule, proportion: float, norm: float, before: float, largest_change: float
) -> float:
    """The proportion after the gradient norm went from `before` to `norm`, both >= 0; not yet bounded.

    paper: p (1 + (F - F') / F'); abs_ratio: p |F| / (|F'| + 1e-12), the same but for a vanishing F'; one_plus_delta:
    relative changes are cut off at +- largest_change.
    """
    if rule == "paper":
        return proportion * (1 + (norm - before) / before) if before else proportion
    if rule == "abs_ratio":
        return proportion * abs(norm) / (abs(before) + TINY)
    change = (norm - before) / (abs(before) + TINY)
    return proportion * (1 + min(max(change, -largest_change), largest_change))


class ProportionSchedule:
    """The replayed proportion of the round to come, within bounds; the first gradient norm only sets the mark.

    The norm F of a round is the server's rate times the mean over branches of the mean over steps of ||g_s||^2. The
    paper calls -F the FGN; a negative F would make one_plus_delta move against the other rules.
    """

    def __init__(self, rule: ProportionRule, start: float, bounds: tuple[float, float], largest_change: float) -> None:
        self.rule, self.bounds, self.largest_change = rule, bounds, largest_change
        self.proportion = start
        self.norm: float | None = None

    def update(self, norm: float) -> None:
        """A round is over, with this F."""
        if self.norm is not None:
            wanted = next_proportion(self.rule, self.proportion, norm, self.norm, self.largest_change)
            self.proportion = min(max(wanted, self.bounds[0]), self.bounds[1])
        self.norm = norm

    def state(self) -> dict[str, float | None]:
        """For a checkpoint."""
        return {"proportion": self.proportion, "norm": self.norm}

    def load(self, state: dict[str, float]) -> None:
        """Take up what `state` gave."""
        self.proportion, self.norm = state["proportion"], state["norm"]
