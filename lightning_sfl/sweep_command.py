"""The command line of `train.py sweep`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.plain_parser import PlainParser, fail, plain_errors
from lightning_sfl.sweep import interrupted_by_signals, jobs_of, the_program, train
from lightning_sfl.sweep_plan import ROUNDS, Sweep, read_sweep
from lightning_sfl.sweep_screen import Screen

DESCRIPTION = """Train every combination of a grid with every seed, several runs at a time, each with one thread.

  train.py sweep --config configs/experiments/compare_digits.yaml
  train.py sweep --base configs/experiments/demo.yaml --grid model=SFL,FedAvg --seeds 0,1,2 --rounds 30

A sweep file holds:

  base: [configs/experiments/demo.yaml]          files every run starts from
  grid:                                          every combination is a run
    model: [SFL, MiniBatchSFL, mine.yaml]        classes, or files of settings
    data.partition.alpha: [0.1, 1.0]             any option of fit
  seeds: [0, 1, 2]                               each combination once per seed
  options: {trainer.max_epochs: 30}              for all runs
  out: runs/my_sweep                             where the runs' folders go

An entry of the grid may also be a bundle, {model: SFL, model.batch_size: 50}. Options given here replace those of the
file. Runs that have all their rounds are left alone and stopped ones go on, so the same command continues a sweep that
was stopped, and a longer list of seeds or more rounds add to it. Then look: train.py compare FOLDER.
"""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    found = PlainParser("sweep", DESCRIPTION)
    found.add_argument("--config", metavar="FILE", help="a sweep file")
    found.add_argument("--base", metavar="FILE", action="append", help="a config every run starts from (repeatable)")
    found.add_argument("--grid", metavar="KEY=A,B", action="append", help="values of an option (repeatable)")
    found.add_argument("--set", metavar="KEY=VALUE", action="append", help="an option of all runs (repeatable)")
    found.add_argument("--seeds", metavar="0,1,2", help="the seeds")
    found.add_argument("--rounds", metavar="N", help=f"communication rounds ({ROUNDS})")
    found.add_argument("--out", metavar="FOLDER", help="where the runs' folders go (runs/ and the file's name)")
    found.add_argument("--jobs", metavar="N", type=int, default=cores(), help="runs at a time (%(default)s, the cores)")
    found.add_argument("--dry_run", action="store_true", help="show the commands and do nothing")
    return found


def main(arguments: Sequence[str]) -> None:
    """Run the command; exit code 1 when a run failed, 2 when the sweep cannot work, 130 after Ctrl-C."""
    given = parser().parse_args(arguments)
    with plain_errors():
        require(given.jobs >= 1, "jobs", given.jobs, "an integer >= 1")
        sweep = sweep_of(given)
        out = Path(sweep.out or default_out(given.config))
        jobs = jobs_of(sweep.points(), out)
        if given.dry_run:
            for job in jobs:
                click.echo(f"# {job.point.name}: {job.state}\n{shlex.join(job.command(['python', 'train.py']))}")
            return
        screen = Screen(jobs, live=sys.stdout.isatty())
        screen.begin()
        try:
            with interrupted_by_signals():
                train(jobs, given.jobs, screen, the_program())
        except KeyboardInterrupt:
            done = sum(job.state == "done" for job in jobs)
            fail(f"interrupted with {done} of {len(jobs)} runs done; the same command goes on", code=130)
    failed = [job for job in jobs if job.state == "failed"]
    if failed:
        fail(f"{len(failed)} of {len(jobs)} runs failed; their output is in stdout.txt and stderr.txt in {out}", code=1)
    click.echo(f"look: python train.py compare {out} --out {out}-compare")


def sweep_of(given: argparse.Namespace) -> Sweep:
    """The file's parts, with those given as options in their place."""
    parts = read_sweep(given.config) if given.config else {}
    if given.base:
        parts["base"] = given.base
    if given.grid:
        parts["grid"] = dict(pair("grid", text) for text in given.grid)
    if given.set:
        parts["options"] = {**parts.get("options", {}), **dict(single("set", text) for text in given.set)}
    if given.rounds is not None:
        parts["options"] = {**parts.get("options", {}), ROUNDS: value_of("rounds", given.rounds)}
    if given.seeds is not None:
        parts["seeds"] = value_of("seeds", f"[{given.seeds}]")
    if given.out:
        parts["out"] = given.out
    require(bool(parts.get("base") or parts.get("grid")), "config", given.config, "a sweep file, or --base and --grid")
    return Sweep(**parts)


def pair(option: str, text: str) -> tuple[str, list[Any]]:
    """`model=SFL,FedAvg` as an option and its values."""
    key, equals, values = text.partition("=")
    require(bool(key and equals and values), option, text, "KEY=A,B")
    return key, value_of(option, f"[{values}]")


def single(option: str, text: str) -> tuple[str, Any]:
    """`model.batch_size=50` as an option and its value."""
    key, equals, value = text.partition("=")
    require(bool(key and equals), option, text, "KEY=VALUE")
    return key, value_of(option, value)


def value_of(option: str, text: str) -> Any:
    """A value as YAML reads it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{option}={text!r} is not allowed: a value as YAML writes it") from None


def default_out(config: str | None) -> str:
    """runs/ and the name of the sweep file."""
    return f"runs/{Path(config).stem if config else 'sweep'}"


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
