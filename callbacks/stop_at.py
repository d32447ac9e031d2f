"""Stop at a budget: equal server steps, client steps, samples or bytes instead of equal rounds."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import click
import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_sfl.core.errors import require
from lightning_sfl.core.events import ClientStep, RoundEnd, ServerStep
from lightning_sfl.records.manifest import read_manifest, write_manifest

UNITS = {"server_steps": "server steps", "client_steps": "client steps", "samples": "samples", "megabytes": "MB"}


class StopAt(Callback):
    """Ends training after the round in which the first of the budgets is used up, and says so, also in `run.json`.

    What was used is counted from the run's first round on, whatever was watched, and goes on in a resumed run; a run
    whose budget is used up does no further round. trainer.max_epochs and min_epochs still bound the rounds.

    Args:
        server_steps: steps of the server half, of all its copies together, as `count/server_steps_total` has them.
        client_steps: steps of client halves, of all clients together.
        samples: rows that clients trained on, repetitions counted.
        megabytes: everything that crossed between clients and server, both ways, in millions of bytes.
    """

    def __init__(
        self,
        server_steps: int | None = None,
        client_steps: int | None = None,
        samples: int | None = None,
        megabytes: float | None = None,
    ) -> None:
        counts = {"server_steps": server_steps, "client_steps": client_steps, "samples": samples}
        for key, budget in counts.items():
            require(budget is None or budget >= 1, f"stop_at.{key}", budget, "an integer >= 1, or null")
        sized = megabytes is None or 0 < megabytes < math.inf
        require(sized, "stop_at.megabytes", megabytes, "a finite number > 0, or null")
        given: dict[str, float | None] = {**counts, "megabytes": megabytes}
        self.budgets = {key: budget for key, budget in given.items() if budget is not None}
        self.used: Counter[str] = Counter()

    # --- counting ---------------------------------------------------------------------------------------------------

    def on_server_step(self, module: Any, event: ServerStep) -> None:
        """One more."""
        self.used["server_steps"] += 1

    def on_client_step(self, module: Any, event: ClientStep) -> None:
        """One more for each client whose turn it was."""
        self.used["client_steps"] += len(event.turns)
        self.used["samples"] += sum(turn.rows for turn in event.turns)

    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Bytes of the round."""
        self.used["bytes"] += sum(event.traffic_bytes.values())

    def reached(self) -> dict[str, float]:
        """Budgets that are used up, and how much was used of them."""
        used = {**self.used, "megabytes": self.used["bytes"] / 1e6}
        return {key: used.get(key, 0) for key, budget in self.budgets.items() if used.get(key, 0) >= budget}

    # --- stopping ---------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A resumed run may have used its budget up already."""
        self._stop_if_reached(trainer, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The round is recorded; is there budget for another?"""
        self._stop_if_reached(trainer, trainer.current_epoch + 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what is left, where the rounds ran out first."""
        if self.budgets and not self.reached() and trainer.is_global_zero:
            used = {**self.used, "megabytes": self.used["bytes"] / 1e6}
            left = [f"{used.get(key, 0):,.6g} of {budget:,.6g} {UNITS[key]}" for key, budget in self.budgets.items()]
            click.echo(f"budget not reached: {', '.join(left)}; trainer.max_epochs={trainer.max_epochs} came first")

    def _stop_if_reached(self, trainer: L.Trainer, rounds: int) -> None:
        reached = self.reached()
        if not reached or rounds < (trainer.min_epochs or 0):
            return
        trainer.should_stop = True
        if trainer.is_global_zero and not trainer.fast_dev_run:
            said = [f"{used:,.6g} of {self.budgets[key]:,.6g} {UNITS[key]}" for key, used in reached.items()]
            click.echo(f"stopped after {rounds} rounds: the budget is used up ({', '.join(said)})")
            self._note(Path(trainer.log_dir or "."), {"rounds": rounds, **reached})

    def _note(self, folder: Path, stopped: dict[str, float]) -> None:
        facts = read_manifest(folder)
        if facts:
            write_manifest(folder, {**facts, "stopped": stopped})

    # --- what lasts -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was used so far."""
        return dict(self.used)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.used = Counter(state_dict)
