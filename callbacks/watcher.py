"""What all watchers share: when they measure, and where they report."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_sfl.core.errors import require
from lightning_sfl.records.report import RoundReport


class Watcher(Callback):
    """A callback that listens to the events of a round and adds to the round's report; it reads and never writes.

    Subclasses define `on_round_start(self, module, event)` and the like for the events they want, measure only in
    rounds that are `due`, keep tensors on the device while the round runs, and read them in `report`.

    Args:
        every: measure in rounds 0, every, 2 * every, ...; 0 switches the watcher off.
    """

    def __init__(self, every: int = 1) -> None:
        require(every >= 0, "every", every, "an integer >= 0")
        self.every = every
        self.idle = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stay idle in a fast_dev_run."""
        self.idle = bool(trainer.fast_dev_run)
        if stage == "fit":
            self.check(trainer.datamodule)  # type: ignore[attr-defined]

    def check(self, data: Any) -> None:
        """Refuse what cannot work with these data; the command line asks before anything is written."""

    def check_method(self, method: Any) -> None:
        """Refuse what cannot work with this method, whose halves are cut; the command line asks as early."""

    def due(self, round: int) -> bool:
        """Whether this round is measured."""
        return self.every > 0 and not self.idle and round % self.every == 0

    def reads_tensors(self, round: int) -> bool:
        """Whether halves or gradients in the events of this round are read; else they need not be brought from the
        processes that have them."""
        return self.due(round)

    def attends(self, round: int) -> bool:
        """Whether events of this round are to be told at all; who counts over all rounds hears every one."""
        return True

    def report(self, module: Any, report: RoundReport) -> None:
        """Add what was seen in this round; called once, when the round is over."""
