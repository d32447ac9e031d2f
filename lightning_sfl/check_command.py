"""`train.py check`: the equivalences and self-tests on the user's own network, cut, data and method, line by line."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import click
import lightning as L
from jsonargparse import Namespace
from tqdm import tqdm

from lightning_sfl.checks.bench import Bench
from lightning_sfl.checks.finding import Finding, examine
from lightning_sfl.checks.lines import CHECKS
from lightning_sfl.checks.running import Prints
from lightning_sfl.core.attendance import EVERYBODY
from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.core.selection import FixedSchedule
from lightning_sfl.methods.base import SplitMethod

# Of the FedAvg family: what few clients may be too few for, and what equivalences do not hold with.
FAMILY = {
    "aggregator": None, "merge_optimizer": None, "effort": None, "attendance": Namespace(**vars(EVERYBODY)),
    "privacy": None, "smashed_noise": 0.0, "sample_dp": None,
}  # fmt: skip


def check_all(cli: Any, clients: int, rows: int, skip: Sequence[str]) -> int:
    """Print every finding as it comes; 0, or 1 if one failed."""
    require(clients >= 2, "clients", clients, "an integer >= 2")
    require(rows >= 4, "rows", rows, "an integer >= 4")
    settings = cli.config[cli.subcommand]
    trainer = settings.trainer
    bench = Prints(
        lambda: rebuilt(cli, {}).data,
        lambda options: rebuilt(cli, options).model,
        cli.datamodule,
        clients,
        rows,
        trainer.precision or "32-true",
        trainer.accelerator,
    )
    known_layer(bench.method)
    refusal = cut_refused(bench)
    if refusal is not None:
        click.echo(Finding(CHECKS[0], "failed", reason=refusal).line())
        click.echo("the other lines need a network that can be cut: train.py cuts lists where")
        return 1
    click.echo(f"method: {bench.method.method_name}; {bench.halves.certificate.describe()}")
    bench.grow()
    absent = left_out(settings.model.init_args)
    if absent:
        click.echo(f"left out here: {', '.join(absent)}")
    for line in head(bench):
        click.echo(line)
    counts: Counter[str] = Counter()
    with tqdm(total=len(CHECKS), disable=not sys.stdout.isatty(), leave=False, unit="line") as bar:
        for finding in examine(bench, CHECKS, skip):
            bar.write(finding.line(), file=sys.stdout)
            bar.update()
            counts[finding.state] += 1
    click.echo(", ".join(f"{counts[state]} {state}" for state in ("ok", "failed", "not applicable")))
    if counts["failed"] > 1:
        click.echo("mend the topmost first: the lines below may fail because of it")
    return int(counts["failed"] > 0)


def rebuilt(cli: Any, options: Mapping[str, Any]) -> Any:
    """Everything of the command's config built anew, the model with these options where it takes them."""
    config = cli.config.clone()
    settings = config[cli.subcommand]
    arguments = settings.model.init_args
    absent = {key: plain for key, plain in FAMILY.items() if key in left_out(arguments)}
    for key, value in {**options, **absent}.items():
        if key in arguments:
            arguments[key] = value
    if least_rows(arguments) > 1:
        arguments.selection.init_args.min_rows = 1
    L.seed_everything(settings.seed_everything, verbose=False)
    built = cli.parser.instantiate_classes(config)[cli.subcommand]
    if isinstance(built.model.selection, FixedSchedule):  # its list names clients of the whole population
        arguments.selection = None
        return rebuilt_from(cli, config)
    return built


def left_out(arguments: Namespace) -> list[str]:
    """Options that were given and that the checks do without."""
    given = [key for key, plain in FAMILY.items() if key in arguments and arguments[key] != plain]
    return [*given, *(["selection.min_rows"] if least_rows(arguments) > 1 else [])]


def least_rows(arguments: Namespace) -> int:
    """Rows below which the selection leaves clients out, where it does; the clients of the checks have few."""
    selection = arguments.get("selection")
    settings = selection.get("init_args") if isinstance(selection, Namespace) else None
    return int(settings.get("min_rows", 1)) if settings is not None else 1


def rebuilt_from(cli: Any, config: Any) -> Any:
    """The same from a config that is final."""
    L.seed_everything(config[cli.subcommand].seed_everything, verbose=False)
    return cli.parser.instantiate_classes(config)[cli.subcommand]


def known_layer(method: SplitMethod) -> None:
    """Refuse a cut layer that the network does not have."""
    names = [name for name, _ in method.backbone[0].named_modules() if name]
    require(method.cut_layer in names, "model.cut_layer", method.cut_layer, f"one of {', '.join(names)}")


def cut_refused(bench: Bench) -> str | None:
    """Why the network cannot be cut there; ConfigError where it does not take the data at all."""
    try:
        bench.halves.certificate.describe()
    except ConfigError as error:
        if not str(error).startswith("cut_layer="):
            raise
        return str(error)
    return None


def head(bench: Bench) -> list[str]:
    """What is checked, and on how much of it."""
    few = bench.few.population
    sizes, exact = (
        "/".join(map(str, few.sizes)),
        "double precision" if bench.precise == "64-true" else "single precision",
    )
    return [
        f"rows: {sizes} of {few.num_clients} of the {bench.data.population.num_clients} clients, "
        f"{bench.small['participants']} of them a round, at most two rounds",
        f"bit for bit in {bench.precision}; up to rounding ({bench.rounding:g}) in {exact}",
        f"{'state':<14}  {'line':<12}  {'apart':<8}  what was compared",
    ]
