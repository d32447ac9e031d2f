"""The command line of `train.py gradients`: what methods would do at one and the same state, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.plain_parser import PlainParser, plain_errors

DESCRIPTION = """Ask what each method would do with the same weights, participants and batches.

  train.py gradients runs/sfl/version_0
  train.py gradients runs/sfl/version_0 --methods SFL USFL mine.Mine my_usfl.yaml --out gradients
  train.py gradients runs/sfl/version_0/checkpoints/round-000004.ckpt runs/sfl/version_0 --participants 5

Weights, data and network come from the checkpoint (the newest good one of a run's folder) and the config beside it.
Every method carries out one round of its own code on one fixed plan, with plain SGD at a vanishing rate and without
clipping; how far the merged halves move, per unit of the rate, is the gradient it applies. A method's scales, its sums
over server steps and its weights of the merge are in it; learning rates, momentum and the way gone are not. FedAvg,
SFLV1, MultiSFL and GAS, whose step is a whole round, are defined alike. What a method remembers from earlier rounds
(replay, generated activations, branches, usage) it does not have here.

Printed and written: norms; cosines with, and distance from, the oracle (the gradient on all clients' rows); 1 - cosine
with minus the gradient on held-out rows (B; C: the mean of that over the clients' own gradients); disagreement of the
clients' own gradients beside its value for orthogonal ones (A_ratio, A_null); cosines between the methods. The
checkpoint stays as it is.
"""
SHARED = ("backbone", "cut_layer", "bn_buffers")
SET_HERE = (
    "client_optimizer", "server_optimizer", "client_scheduler", "server_scheduler", "client_clip", "server_clip",
    "participants", "batch_size", "local_epochs", "local_steps", "selection", "seed",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    found = PlainParser("gradients", DESCRIPTION)
    found.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="a run's folder, or a checkpoint in one")
    found.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="classes, or files with settings of one (all that come along and train one network)",
    )
    found.add_argument("--participants", type=int, metavar="N", help="how many clients (as the run has it)")
    found.add_argument("--batch_size", type=int, metavar="N", help="rows of each in a step (as the run has it)")
    found.add_argument("--local_steps", type=int, default=1, metavar="N", help="steps of each client (%(default)s)")
    found.add_argument("--round", type=int, metavar="N", help="whose participants and batches (the checkpoint's next)")
    found.add_argument("--out", default="gradients", metavar="DIR", help="where tables and pictures go (%(default)s)")
    return found


def main(arguments: Sequence[str]) -> None:
    """Run the command; exit code 2 where it cannot work."""
    given = parser().parse_args(arguments)
    sys.path.insert(0, str(Path.cwd()))  # a user's own methods and networks, by import path
    for key in ("participants", "batch_size", "local_steps"):
        value = getattr(given, key)
        with plain_errors():
            require(value is None or value >= 1, key, value, "an integer >= 1")
    with plain_errors():
        require(given.round is None or given.round >= 0, "round", given.round, "an integer >= 0")
        out = Path(given.out)
        require(not out.exists() or out.is_dir(), "out", given.out, "a folder")
        states = [located(path) for path in given.checkpoints]
        from lightning_sfl.gradient_states import study
        from lightning_sfl.records.gradient_report import as_screen, write

        entries = [method_settings(entry) for entry in given.methods or ()]
        found = [study(config, path, given, entries) for config, path in states]
        click.echo(as_screen(found))
        notes = write(found, out)
        click.echo("\n".join([*notes, f"wrote {out / 'gradients.md'} and tables and pictures beside it"]))


def located(text: str) -> tuple[dict[str, Any], Path]:
    """The config of a run, and the checkpoint that is meant."""
    from lightning_sfl.checkpoint import newest_good

    path = Path(text)
    folder = path.parent.parent if path.is_file() else path
    file = folder / "config.yaml"
    require(file.is_file(), "checkpoint", text, "a run's folder, which holds its config.yaml, or a checkpoint in one")
    checkpoint = path if path.is_file() else newest_good(folder / "checkpoints")
    if checkpoint is None:
        raise ConfigError(f"checkpoint={text!r} is not allowed: a run with a good checkpoint; this one has none")
    return read(file), checkpoint


def read(path: Path) -> dict[str, Any]:
    """Settings from a file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"{str(path)!r} is not a config: settings in YAML") from None
    require(isinstance(content, dict), "config", str(path), "settings as `key: value`")
    return content  # type: ignore[no-any-return]


def method_settings(entry: str) -> tuple[str, str, dict[str, Any]]:
    """What an entry of --methods means: its label, its class, and the options that are the method's own."""
    if not entry.endswith((".yaml", ".yml")):
        return entry.rpartition(".")[2], entry, {}
    require(Path(entry).is_file(), "methods", entry, "a class, or a file that is there")
    model = read(Path(entry)).get("model")
    model = {"class_path": model} if isinstance(model, str) else model
    if not isinstance(model, Mapping) or not isinstance(model.get("class_path"), str):
        raise ConfigError(f"methods={entry!r} is not allowed: a file with model.class_path")
    options = model.get("init_args") or {}
    return Path(entry).stem, model["class_path"], {k: v for k, v in options.items() if k not in (*SHARED, *SET_HERE)}
