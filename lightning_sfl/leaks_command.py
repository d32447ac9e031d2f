"""`train.py leaks`: what the server, or anybody, could find out of what clients send, at every cut and as set up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from lightning_sfl.checkpoint import DurableCheckpointIO
from lightning_sfl.commands import AttackEffort
from lightning_sfl.core.errors import require
from lightning_sfl.leakage_study import check_leaks, leaks_at_cuts, leaks_to_attack
from lightning_sfl.records.leak_report import as_screen, write
from lightning_sfl.rehearsal import check_checkpoint


def show_leaks(cli: Any, samples: int, effort: AttackEffort, output: str | None) -> None:
    """Print both tables, and write them into the folder if there is one."""
    require(samples >= 4, "samples", samples, "an integer >= 4")
    for key, value in vars(effort).items():
        require(value >= 1, f"attack.{key}", value, "an integer >= 1")
    method, data = cli.model, cli.datamodule
    check_leaks(method, data)
    method.prepare(data, "fit")
    state = load_weights(cli)
    click.echo(f"method: {method.method_name}, {state}")
    for line in method.said_of_privacy() or ["privacy: none"]:
        click.echo(line)
    found = {
        "method": method.method_name,
        "cut_layer": method.cut_layer,
        "state": state,
        "privacy": method.said_of_privacy(),
        "attack": {**vars(effort)},
        "cuts": leaks_at_cuts(method, data, samples),
        "seen": leaks_to_attack(method, data, **vars(effort), bar=progress),
    }
    click.echo("\n" + as_screen(found))
    if output is not None:
        names = write(found, Path(output))
        click.echo(f"\nwrote {', '.join(names)} in {output}")


def progress(total: int) -> Any:
    """A bar on a terminal, nothing elsewhere."""
    return tqdm(total=total, disable=not sys.stdout.isatty(), leave=False, unit="step")


def load_weights(cli: Any) -> str:
    """Load the checkpoint that was named, or the newest good one of a run; which state this is about."""
    path, resumed = cli.checkpoint(), cli.resumed
    if path is None:
        require(resumed is None, "resume", resumed, "a run with a good checkpoint, and this one has none yet")
        return "as it was built"
    check_checkpoint(cli.model, path, 0, resumed)
    checkpoint = DurableCheckpointIO(fall_back=False).load_checkpoint(path)
    cli.model.load_state_dict(checkpoint["state_dict"])
    return f"with the weights of {path}"
