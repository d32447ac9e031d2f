"""What the commands beside training show and write."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from lightning.pytorch import Trainer

from lightning_sfl.core.split import cuts
from lightning_sfl.data.table import class_table, draw_classes, format_table
from lightning_sfl.placement.ending import is_first_to_fail, leave


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


def stop(message: str, code: int) -> None:
    """End all processes of the run; the first of them that cannot go on says why."""
    if is_first_to_fail():
        click.echo(f"error: {message}", err=True)
    leave()
    sys.exit(code)
