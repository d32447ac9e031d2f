"""What the commands beside training show and write."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_sfl.config_words import one_line
from lightning_sfl.console import shown
from lightning_sfl.core.errors import ConfigError, DataError, SFLError
from lightning_sfl.core.split import cuts
from lightning_sfl.data.table import class_table, draw_classes, format_table
from lightning_sfl.placement.ending import is_first_to_fail, leave

INTERRUPTED = "interrupted; `fit --resume` with the run's folder goes on after the last finished round"
ABOUT = """Compare split federated learning methods, one training loop for all of them. To begin:
fit --config configs/methods/sfl.yaml. What a method can be told: fit --model.help SFL. Settings stand in configs, later
ones overriding earlier ones, or are given as --name value. More commands: `sweep` trains a grid of
settings and seeds, `compare` makes tables and pictures of runs, `gradients` asks what each method would do at one
checkpoint (--help explains them); `check` tests your own network and method, and `doctor` examines the installation
and says what to mend."""
ABOUT_COMMANDS = {
    "fit": "Train, and record every round in a fresh folder below trainer.default_root_dir.",
    "validate": "Judge a checkpoint on the validation rows: --resume a run, or --ckpt_path and the run's config.",
    "test": "Judge a checkpoint on the test rows: --resume a run, or --ckpt_path and the run's config.",
    "predict": "Write the most likely class of every test row to predictions.csv.",
    "check": "Run equivalences and self-tests on your own network, cut, data and method, on a handful of your rows. One"
    " line each: ok, failed, or not applicable with the reason; what was compared; the difference that was measured."
    " Exit code 0 when all that apply hold, 1 when one fails, 2 when the settings cannot work. It takes the configs and"
    " options of fit and writes nothing. A line that a method breaks on purpose is left out by --skip, or by the"
    " method's departures(), which says why.",
    "leaks": "Say what clients give away: at each cut, how much smashed data go with their inputs (distance"
    " correlation); and at the run's cut and privacy, how well a few inputs are found again from what one client sends"
    " (inversion with known labels). Of the network as it is built, or, with --resume, as it was trained.",
}


@dataclass(frozen=True)
class AttackEffort:
    """How hard `leaks` tries.

    Args:
        rows: of one client, which are sought.
        steps: from each start.
        restarts: starts; what fits best is taken.
    """

    rows: int = 2
    steps: int = 300
    restarts: int = 2


BY_DEFAULT = AttackEffort()


class CommandTrainer(Trainer):
    """Lightning's Trainer: rounds (max_epochs), precision, device, folder of the runs, callbacks of your own.

    It has the names of our own commands, too; SFLCLI carries them out.
    """

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

    def check(
        self, model: Any, datamodule: Any, clients: int = 4, rows: int = 8, skip: list[str] | None = None
    ) -> None:
        """Run the equivalences and self-tests.

        Args:
            model: what is checked.
            datamodule: gives the rows.
            clients: how many of the data's clients take part in the checks, 2 or more.
            rows: rows of each, 4 or more; they become more by themselves when the method refuses to train on so few.
            skip: names of lines to leave out, such as [one_step] for a method that scales its gradients on purpose.
        """

    def leaks(
        self,
        model: Any,
        datamodule: Any,
        samples: int = 256,
        attack: AttackEffort = BY_DEFAULT,
        output: str | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Measure what clients give away.

        Args:
            model: whose clients, with its privacy.
            datamodule: gives the rows.
            samples: rows whose distances are compared.
            attack: how hard inputs are sought.
            output: folder for the tables as leaks.json, leaks.md, cuts.csv and inversion.csv; null for none.
            ckpt_path: a checkpoint whose weights are taken; --resume takes the newest of a run.
        """


def show_cuts(model: Any, data: Any) -> None:
    """Layers after which the network of `model` can be cut, and why the others cannot."""
    data.setup("fit")
    listing = cuts(model.backbone[0], data.example())
    click.echo(f"{'cut layer':<20} {'smashed':>14} {'KiB/sample':>11} {'client params':>14} {'share':>7}  way")
    for row in listing.valid:
        shapes = " + ".join("x".join(map(str, shape)) for shape in row.smashed_shapes)
        share = row.client_parameters / (row.client_parameters + row.server_parameters)
        figures = f"{row.kib_per_sample:>11.4g} {row.client_parameters:>14,} {share:>7.1%}"
        click.echo(f"{row.name:<20} {shapes:>14} {figures}  {row.way}")
    for name, reason in listing.refused:
        click.echo(f"refused: {name} ({reason})")


def show_partition(data: Any, folder: Path) -> None:
    """Rows of each class per client: a table here, a picture and the manifest in `folder`."""
    data.setup("fit")
    population = data.population
    click.echo("\n".join(data.summary()))
    click.echo(format_table(class_table(population, data.num_classes), population.sizes))
    folder.mkdir(parents=True, exist_ok=True)
    draw_classes(population, data.num_classes, folder / "classes_per_client.png")
    data.write_manifest(folder / "manifest.json")
    click.echo(f"wrote {folder / 'classes_per_client.png'} and {folder / 'manifest.json'}")


def write_predictions(batches: Iterable[Any], folder: Path) -> None:
    """One line per test row: its number and the most likely class (classes of all positions, for sequences)."""
    path = folder / "predictions.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "prediction"])
        writer.writerows(enumerate(row for batch in batches for row in batch.tolist()))
    click.echo(f"wrote {path}")


def show_results(trainer: Trainer) -> None:
    """Where records, checkpoints and curves are; said by the first process."""
    root = trainer.default_root_dir
    folder = trainer.log_dir or root  # asks all processes
    if trainer.is_global_zero:
        click.echo(f"records, checkpoints and config: {shown(folder)}")
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            click.echo(f"curves: tensorboard --logdir {shown(root)}")


def stop_for(error: BaseException) -> None:
    """End with one line where the error is for the user to mend, or was Ctrl-C; return where it is none of these.

    Lightning answers Ctrl-C with an exit of its own, after it has shut down what was running; and it raises a bare
    RuntimeError where early stopping is to watch what nobody logs, as a class of the user's may.
    """
    left = error.__context__ if isinstance(error, SystemExit) else error
    early = isinstance(error, RuntimeError) and str(error).startswith("Early stopping conditioned on metric")
    if isinstance(left, KeyboardInterrupt):
        stop(INTERRUPTED, code=130)
    if isinstance(error, ConfigError | DataError | MisconfigurationException) or early:
        stop(one_line(error), code=2)
    if isinstance(error, SFLError):
        stop(one_line(error), code=1)


def stop(message: str, code: int) -> None:
    """End all processes of the run; the first of them that cannot go on says why."""
    if is_first_to_fail():
        click.echo(f"error: {message}", err=True)
    leave()
    sys.exit(code)
