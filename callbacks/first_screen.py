"""The first screen: what is about to be trained, on what, said once before the first round."""

from __future__ import annotations

from typing import Any

import click
import lightning as L
from lightning.pytorch.callbacks import Callback


class FirstScreen(Callback):
    """Shows the method's `describe()` and the data module's `summary()`, on the first process only."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """By now both know all they have to say."""
        if not trainer.is_global_zero:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        click.echo("\n".join([*_lines(pl_module, "describe"), *_lines(datamodule, "summary")]))


def _lines(speaker: Any, name: str) -> list[str]:
    return list(getattr(speaker, name)()) if hasattr(speaker, name) else []
