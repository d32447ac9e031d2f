"""A Lightning Trainer with the project's defaults: what the command line and a Python script both start from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_sfl.checkpoint import DurableCheckpointIO
from lightning_sfl.core.errors import require
from lightning_sfl.placement import Placement
from lightning_sfl.placement.launch import honour, strategy_for

DEFAULTS: dict[str, Any] = {
    "max_epochs": 20,
    "devices": 1,
    "default_root_dir": "runs",
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


class Kept(ModelCheckpoint):
    """A checkpoint after a round, whether or not it was evaluated, over a file of this name if one was left there.

    Which older ones go is read off the folder after each round: Lightning spares the file that a run was resumed from,
    and a kill between writing one and removing another leaves both.
    """

    def __init__(self, monitor: str, name: str, keep: int) -> None:
        super().__init__(
            monitor=monitor,
            mode="max",
            save_top_k=keep,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.name, self.filename = name, f"{name}-{{round:06.0f}}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Lightning's hook: save, then tidy up."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)
            self.tidy(trainer, trainer.current_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Lightning's hook: tidy up after a kill in the last round, too, when there is none left to train."""
        self.tidy(trainer, trainer.current_epoch - 1)

    def tidy(self, trainer: Trainer, round: int) -> None:
        """Remove what has to go."""
        for path in self.outdated(round):
            trainer.strategy.remove_checkpoint(path)

    def files(self) -> list[Path]:
        """What stands in the folder, by round."""
        return sorted(Path(self.dirpath or ".").glob(f"{self.name}-??????.ckpt"))

    def outdated(self, round: int) -> list[Path]:
        """Files that have to go after this round."""
        raise NotImplementedError


class KeepLast(Kept):
    """A checkpoint after every round; the newest `keep` stay.

    Args:
        keep: how many, -1 for all; two, so that a damaged one has a predecessor.
    """

    def __init__(self, keep: int = 2) -> None:
        require(keep >= 1 or keep == -1, "checkpoints.keep", keep, "an integer >= 1, or -1 for all")
        super().__init__("round", "round", keep)

    def outdated(self, round: int) -> list[Path]:
        """All but the newest; what is of a later round than the one that was resumed will be written anew."""
        past = [path for path in self.files() if int(path.stem[-6:]) <= round]
        return [] if self.save_top_k == -1 else past[: -self.save_top_k]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook. Nothing to remember: the folder says what there is."""


class KeepBest(Kept):
    """The checkpoint of the round with the highest validation accuracy.

    Nothing is kept when curves are drawn on the test set: to choose a round by it would be a decision on test data.
    """

    def __init__(self) -> None:
        super().__init__("val/acc", "best", 1)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Lightning's hook: stand back when there is no validation accuracy."""
        if trainer.datamodule.eval_set != "val":  # type: ignore[attr-defined]
            self.save_top_k = 0
        super().setup(trainer, pl_module, stage)

    def outdated(self, round: int) -> list[Path]:
        """All but the best."""
        return [path for path in self.files() if self.save_top_k and path.name != Path(self.best_model_path).name]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook: go on from the best file that this folder holds, wherever the folder stood before."""
        best = Path(self.dirpath or ".") / Path(state_dict["best_model_path"]).name
        if best in self.files():
            self.best_model_path = self.kth_best_model_path = str(best)
            self.best_model_score = self.kth_value = self.current_score = state_dict["best_model_score"]
            self.best_k_models = {str(best): state_dict["best_model_score"]}


def run_loggers(root: str | Path, name: str, version: str | None = None) -> list[Logger]:
    """TensorBoard and CSV, both in root/name/version; a fresh version_N by default."""
    ours = version is None  # the folder of a run that goes on is the user's own
    plain = re.fullmatch(r"\w[\w.-]*", name) is not None
    require(plain or not ours, "name", name, "letters, digits, `_`, `-` and `.`: it becomes a folder")
    board = TensorBoardLogger(root, name=name, version=version, default_hp_metric=False)
    return [board, CSVLogger(root, name=name, version=board.version)]


def beside(given: Any, ours: list[Logger]) -> list[Logger]:
    """Ours, and those that were asked for besides; not ours where one of their kinds is among those: it has the folder.

    given: a logger, several, or None or True for ours alone.
    """
    others = [logger for logger in (given if isinstance(given, list) else [given]) if isinstance(logger, Logger)]
    return others if any(isinstance(each, (CSVLogger, TensorBoardLogger)) for each in others) else [*ours, *others]


def loggers_for(resumed: str | None, root: str, name: str) -> list[Logger]:
    """TensorBoard and CSV in a fresh folder below `root`, or in the folder of the run that goes on."""
    if resumed is None:
        return run_loggers(Path(root).resolve(), name)
    folder = Path(resumed).resolve()
    return run_loggers(folder.parent.parent, folder.parent.name, folder.name)


def trainer(
    max_epochs: int = 20,
    name: str = "run",
    callbacks: list[Callback] | None = None,
    placement: Placement = Placement(),
    **options: Any,
) -> Trainer:
    """Trainer for `max_epochs` rounds that records into runs/`name`/version_N.

    Args:
        max_epochs: communication rounds.
        name: folder of the run's records under `default_root_dir`.
        callbacks: besides the default ones.
        placement: which process has which half, where `devices` and `num_nodes`, or a launcher, make several.
        options: any argument of Lightning's Trainer.
    """
    from lightning_sfl.callbacks import default_callbacks

    settings = {"num_nodes": 1, "accelerator": "auto", "precision": None, **DEFAULTS, **options}
    settings["max_epochs"] = max_epochs
    honour(settings)
    settings.setdefault("strategy", strategy_for(placement, settings))
    if settings.get("logger") is None:
        settings["logger"] = run_loggers(settings["default_root_dir"], name)
    settings["plugins"] = [*settings.get("plugins", []), DurableCheckpointIO()]
    watching = default_callbacks(progress_bar=settings.get("enable_progress_bar") is not False)
    # the best before the last: so the checkpoint that training goes on from knows the best one of its round
    return Trainer(callbacks=[*watching, KeepBest(), KeepLast(), *(callbacks or [])], **settings)
