"""Rounds in which clients do more or less, as training goes on."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from lightning_sfl.core.aggregators import WeightedAverage
from lightning_sfl.core.effort import Effort
from lightning_sfl.core.errors import require
from lightning_sfl.methods.attending import Attending


class Paced(Attending):
    """Sets the work of each round, where it is not the same in all.

    why_same_work: what to answer where it has to be the same.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        effort: how many epochs clients make of which batches, round by round; null for `local_epochs` in all of them.
        kwargs: options of `SplitModule`.
    """

    why_same_work: ClassVar[str] = ""

    def __init__(self, backbone: nn.Module, cut_layer: str, *, effort: Effort | None = None, **kwargs: Any) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        self.effort, self.planned_work = effort, self.work
        if effort is not None:
            why = f"null in {type(self).__name__}, as {self.why_same_work}"
            require(not self.why_same_work, "effort", type(effort).__name__, why)
            steps = self.work.local_steps
            require(steps is None, "local_steps", steps, "null where `effort` says how many epochs are made")
            effort.check(self.work)

    def prepare(self, data: Any, stage: str) -> None:
        """Cut the network, and begin as configured."""
        super().prepare(data, stage)
        if stage == "fit" and self.effort is not None:
            self.effort.restart()

    def set_work(self, index: int) -> None:
        """Decide how much clients do in round `index`."""
        if self.effort is not None:
            self.work = self.effort.work(index, self.planned_work, self.seed)

    def learn_effort(self, index: int, loss: float, accuracy: float) -> None:
        """Take note of what the round has brought."""
        if self.effort is not None:
            self.effort.learn(index, self.work, loss, accuracy)

    def options_of_family(self) -> list[str]:
        """What the first screen says of aggregation, participation and effort, where they are not as by default."""
        rule = None if isinstance(self.aggregator, WeightedAverage) else self.aggregator
        chosen = {"aggregator": rule, "merge_optimizer": self.merge_optimizer, "effort": self.effort}
        named = [f"{key} {type(value).__name__}" for key, value in chosen.items() if value is not None]
        return [*named, *self.attendance.said()]

    def work_scalars(self) -> dict[str, float]:
        """What clients do in this round, for its record."""
        if self.effort is None:
            return {}
        sizes = {} if self.work.batch_size is None else {"effort/batch_size": float(self.work.batch_size)}
        return {"effort/local_epochs": float(self.work.local_epochs), **sizes}

    def memory(self) -> dict[str, Any]:
        learned = {} if self.effort is None else {"effort": {type(self.effort).__name__: self.effort.state}}
        return {**super().memory(), **learned}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        if self.effort is not None:
            learned = memory.get("effort", {}).get(type(self.effort).__name__)  # another one begins anew
            self.effort.state = self.effort.state if learned is None else learned
