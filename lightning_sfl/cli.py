"""The command line: LightningCLI with the project's defaults, three commands of its own, and errors of one line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import lightning_sfl.backbones
import lightning_sfl.methods  # noqa: F401
from lightning_sfl import callbacks
from lightning_sfl.arguments import resolved
from lightning_sfl.checkpoint import DurableCheckpointIO, newest_good
from lightning_sfl.commands import show_cuts, show_partition, write_predictions
from lightning_sfl.config_errors import explain, one_line
from lightning_sfl.core.errors import ConfigError, SFLError, require
from lightning_sfl.data import FederatedData
from lightning_sfl.methods.base import SplitMethod
from lightning_sfl.trainer import DEFAULTS, KeepBest, KeepLast, run_loggers

PRECISIONS = ("32-true", "64-true", "bf16-mixed")


class OneLineParser(LightningArgumentParser):
    """Parser whose errors are one line and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Say what is wrong, without the usage text."""
        fail(explain(message, self))


class CommandTrainer(Trainer):
    """Lightning's Trainer with the names of our own commands; SFLCLI carries them out."""

    def cuts(self, model: Any, datamodule: Any) -> None:
        """List the layers after which the network can be cut.

        Args:
            model: gives the network.
            datamodule: gives an example input.
        """

    def partition(self, model: Any, datamodule: Any, output: str = "partition") -> None:
        """Show how many rows of each class every client has.

        Args:
            model: not used.
            datamodule: what is shown.
            output: folder for the picture and the manifest.
        """


class SFLCLI(LightningCLI):
    """fit, validate, test, predict, cuts and partition."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Commands and the arguments of the Trainer's method that the config supplies."""
        own = {"cuts": {"model", "datamodule"}, "partition": {"model", "datamodule"}}
        return {**LightningCLI.subcommands(), **own}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for data and model, and a config key for each default callback."""
        parser.link_arguments("seed_everything", "data.seed", compute_fn=checked_seed)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=checked_seed)
        for key, callback in callbacks.DEFAULTS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_lightning_class_args(KeepLast, "checkpoints")
        parser.add_argument(
            "--threads",
            type=PositiveInt,
            default=1,
            help="CPU threads of torch. Results repeat bit for bit at one number; small networks are quickest with 1.",
        )
        parser.add_argument(
            "--resume",
            type=str | None,
            default=None,
            help="A run's folder: take its config and newest good checkpoint; fit goes on from there, in that folder.",
        )

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work before anything is built."""
        torch.set_num_threads(self._get(self.config, "threads"))
        trainer = self._get(self.config, "trainer")
        require(
            trainer.precision in (None, *PRECISIONS), "trainer.precision", trainer.precision, f"one of {PRECISIONS}"
        )
        require(
            trainer.devices in (1, "1"), "trainer.devices", trainer.devices, "1: this version trains in one process"
        )
        require(trainer.num_nodes == 1, "trainer.num_nodes", trainer.num_nodes, "1: this version trains in one process")
        require(trainer.max_epochs is None or trainer.max_epochs >= 1, "trainer.max_epochs", trainer.max_epochs, ">= 1")
        for key in ("gradient_clip_val", "accumulate_grad_batches"):
            default = None if key == "gradient_clip_val" else 1
            require(
                trainer[key] in (None, default), f"trainer.{key}", trainer[key], "see model.client_clip, server_clip"
            )

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a constructor's complaint is the user's one line."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise ConfigError(one_line(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add loggers in the run's folder, durable checkpoints, and what a resumed run goes on from."""
        settings = self._get(self.config_init, "trainer")
        if self.subcommand == "fit":
            if settings.logger in (None, True):
                kwargs["logger"] = self.loggers(settings.default_root_dir)
            settings.callbacks = [*(settings.callbacks or []), KeepBest(), callbacks.FirstScreen()]
        else:
            kwargs["logger"] = False
            self.save_config_callback = None
        if settings.enable_progress_bar is not False:
            settings.callbacks = [*(settings.callbacks or []), callbacks.RoundProgress()]
        kwargs["plugins"] = [*(settings.plugins or []), DurableCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def loggers(self, root: str) -> list[Any]:
        """TensorBoard and CSV in a fresh folder, or in the folder of the run that goes on."""
        resumed = self._get(self.config, "resume")
        if resumed is None:
            return run_loggers(Path(root).resolve(), self.model.method_name)
        folder = Path(resumed).resolve()
        return run_loggers(folder.parent.parent, folder.parent.name, folder.name)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Point a command at the newest good checkpoint of the run it resumes."""
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        resumed = self._get(self.config, "resume")
        if resumed is not None and "ckpt_path" in arguments:
            newest = newest_good(Path(resumed) / "checkpoints")
            click.echo(f"{resumed}: {newest.name if newest else 'no checkpoint yet, from the start'}")
            arguments["ckpt_path"] = newest
        return arguments

    def after_fit(self) -> None:
        """Say where the results are."""
        folder = self.trainer.log_dir
        if folder is not None:
            click.echo(f"records, checkpoints and config: {shown(folder)}")
            click.echo(f"curves: tensorboard --logdir {shown(self.trainer.default_root_dir)}")

    # --- commands ---------------------------------------------------------------------------------------------------

    def cuts(self, model: SplitMethod, datamodule: FederatedData) -> None:
        """Print valid cuts and refused ones."""
        show_cuts(model, datamodule)

    def partition(self, model: SplitMethod, datamodule: FederatedData, output: str) -> None:
        """Print the table of classes per client; write its picture and the manifest."""
        show_partition(datamodule, Path(output))

    def predict(self, **arguments: Any) -> None:
        """Write the predicted classes of the test rows to predictions.csv in the root folder."""
        write_predictions(self.trainer.predict(**arguments) or [], Path(self.trainer.default_root_dir))


def shown(path: str) -> str:
    """A path relative to the current folder where that is shorter."""
    return min(str(Path(path)), os.path.relpath(path), key=len)


def checked_seed(seed: int | bool) -> int:
    """The run's seed; True would draw one that no record could repeat."""
    require(not isinstance(seed, bool) and 0 <= seed < 2**32, "seed_everything", seed, "an integer from 0 to 2**32 - 1")
    return seed


def fail(message: str, code: int = 2) -> None:
    """End with one line on the error stream."""
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exit code 2: the settings or files cannot work; 1: training had to stop."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, str(Path.cwd()))  # a user's own methods and networks, by import path
    quiet_warnings()
    try:
        if given[:1] == ["doctor"]:
            from lightning_sfl.doctor import examine

            sys.exit(examine())
        run(given)
    except (ConfigError, MisconfigurationException) as error:
        fail(one_line(error))
    except SFLError as error:
        fail(one_line(error), code=1)


def run(arguments: Sequence[str]) -> SFLCLI:
    """Parse the arguments and carry the command out."""
    strict = {command: {"allow_abbrev": False} for command in SFLCLI.subcommands()}
    return SFLCLI(
        SplitMethod,
        FederatedData,
        subclass_mode_model=True,
        trainer_class=CommandTrainer,
        trainer_defaults=DEFAULTS,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_class=OneLineParser,
        parser_kwargs={"allow_abbrev": False, **strict},
        args=resolved(arguments),
    )


def quiet_warnings() -> None:
    """Silence advice that does not apply here; the first screen says what Lightning's notes would."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    notes = (
        "is not empty",
        "intended to run from within Python",
        "LeafSpec.*is deprecated",
        "callbacks used to create",
        "dirpath has changed",
        "have no logger configured",
    )
    for note in notes:
        warnings.filterwarnings("ignore", message=f".*{note}.*")
