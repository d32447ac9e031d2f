"""Progress: a line that counts rounds on a terminal, one plain line per round elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import click
import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lightning_sfl.core.events import ClientStep, RoundEnd, RoundStart, ServerStep


class RoundProgress(ProgressBar):
    """Shows round, accuracy, loss, megabytes moved and steps of both sides, all of the round just finished.

    Args:
        live: redraw one line; null for only when writing to a terminal.
    """

    def __init__(self, live: bool | None = None) -> None:
        super().__init__()
        self.live = live
        self.enabled = True
        self.bar: tqdm[Any] | None = None
        self._start_round()

    def _start_round(self) -> None:
        self.steps: Counter[str] = Counter()
        self.bytes = 0
        self.local_step = 0

    def disable(self) -> None:
        """Say nothing."""
        self.enabled = False

    def enable(self) -> None:
        """Speak again."""
        self.enabled = True

    @property
    def redraws(self) -> bool:
        """Whether there is a terminal to redraw a line on."""
        return sys.stdout.isatty() if self.live is None else self.live

    # --- what the round says ----------------------------------------------------------------------------------------

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Count from zero."""
        self._start_round()

    def on_client_step(self, module: Any, event: ClientStep) -> None:
        """One more local step."""
        self.steps["client"] += len(event.turns)
        self.local_step += 1
        if self.bar is not None:
            self.bar.set_description_str(f"round {event.round + 1}, step {self.local_step}", refresh=False)
            self.bar.update(0)

    def on_server_step(self, module: Any, event: ServerStep) -> None:
        """One more server step."""
        self.steps["server"] += 1

    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """Bytes of the round."""
        self.bytes = sum(event.traffic_bytes.values())

    def reads_tensors(self, round: int) -> bool:
        """It only counts."""
        return False

    # --- training ---------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the line."""
        if self.enabled and self.redraws:
            total = None if trainer.max_epochs in (None, -1) else trainer.max_epochs
            self._open("round", total, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One round more."""
        if self.bar is not None:
            self.bar.set_description_str("round", refresh=False)
            self.bar.set_postfix_str(self._text(trainer), refresh=False)
            self.bar.update(1)
            self.bar.refresh()
        elif self.enabled:
            total = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
            click.echo(f"round {trainer.current_epoch + 1}{total}  {self._text(trainer)}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the line as it stands."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the line as it stands, so that the error gets its own."""
        self._close()

    def _text(self, trainer: L.Trainer) -> str:
        metrics = trainer.callback_metrics
        dataset = next((name for name in ("val", "test", "train") if f"{name}/acc" in metrics), "")
        shown = [
            f"{kind} {float(metrics[f'{dataset}/{kind}']):.4g}"
            for kind in ("acc", "loss")
            if f"{dataset}/{kind}" in metrics
        ]
        prefix = "train " if dataset == "train" else ""
        moved = f"{self.bytes / 1e6:.1f} MB" if self.bytes >= 1e5 else f"{self.bytes / 1e3:.1f} kB"
        return prefix + "  ".join([*shown, moved, f"steps client/server {self.steps['client']}/{self.steps['server']}"])

    # --- the other loops --------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation inside training shows nothing of its own."""
        if trainer.state.fn == "validate":
            self._open_evaluation("validate", sum(trainer.num_val_batches))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a line that counts batches."""
        self._open_evaluation("test", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a line that counts batches."""
        self._open_evaluation("predict", sum(trainer.num_predict_batches))

    def on_validation_batch_end(self, trainer: L.Trainer, *batch: Any) -> None:
        """One batch more, unless it is a round's validation."""
        if trainer.state.fn == "validate":
            self._advance()

    def on_test_batch_end(self, *batch: Any) -> None:
        """One batch more."""
        self._advance()

    def on_predict_batch_end(self, *batch: Any) -> None:
        """One batch more."""
        self._advance()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Done."""
        if trainer.state.fn == "validate":
            self._close()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Done."""
        self._close()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Done."""
        self._close()

    def _open_evaluation(self, name: str, batches: float) -> None:
        if self.enabled and self.redraws:
            self._open(name, None if batches == float("inf") else int(batches), 0)

    def _open(self, name: str, total: int | None, initial: int) -> None:
        self.bar = tqdm(desc=name, total=total, initial=initial, file=sys.stdout, dynamic_ncols=True, leave=True)

    def _advance(self) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        text = kwargs.get("sep", " ").join(map(str, args))
        if self.bar is None:
            click.echo(text)
        else:
            self.bar.write(text, file=sys.stdout)
