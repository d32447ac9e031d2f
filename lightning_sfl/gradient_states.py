"""One checkpoint, asked with every method: methods and data built from settings, and what is told about each method."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

import lightning_sfl.methods
from lightning_sfl.applied_gradients import Applied, applied, blocks, reference, weights_of
from lightning_sfl.checkpoint import DurableCheckpointIO
from lightning_sfl.class_names import kind_of
from lightning_sfl.config_errors import explain
from lightning_sfl.config_words import one_line, original
from lightning_sfl.console import quiet_warnings
from lightning_sfl.core.errors import ConfigError, SFLError
from lightning_sfl.core.population import Population
from lightning_sfl.core.rounds import Plan, Work, plan_round
from lightning_sfl.core.selection import Uniform
from lightning_sfl.data import FederatedData
from lightning_sfl.gradients_command import SHARED
from lightning_sfl.measures.alignment import cosine_matrix
from lightning_sfl.measures.disagreement import disagreement
from lightning_sfl.measures.gram import gram
from lightning_sfl.measures.gram import weights_of as shares_of
from lightning_sfl.measures.oracle import differences_from, oracle_distance
from lightning_sfl.measures.probe import probe_alignment
from lightning_sfl.methods.base import SplitMethod
from lightning_sfl.records.palette import place_of

PROBE_ROWS = 1000
Entry = tuple[str, str, dict[str, Any]]


def study(config: dict[str, Any], path: Path, given: argparse.Namespace, entries: Sequence[Entry]) -> dict[str, Any]:
    """All that is found out at one checkpoint, as plain values.

    Args:
        config: of the run that wrote it.
        path: the checkpoint.
        given: the command's options.
        entries: label, class and own options of each method; all that come along where there is none.
    """
    quiet_warnings()
    torch.set_num_threads(1)
    checkpoint = DurableCheckpointIO(fall_back=False).load_checkpoint(path)
    weights = weights_of(checkpoint, path)
    seed, model = int(config.get("seed_everything") or 0), (config.get("model") or {}).get("init_args") or {}
    data = build_data(config.get("data") or {}, seed)
    index = given.round if given.round is not None else int(checkpoint.get("epoch", -1)) + 1
    size = given.batch_size or model.get("batch_size") or 10
    plan = plan_for(data.population, seed, index, given.participants or model.get("participants") or 10, size, given)
    entries = entries or [(name, name, {}) for name in every_method()]
    shared = {key: model[key] for key in SHARED if key in model}
    wanted = {"seed": seed, "participants": len(plan.participants), "batch_size": size}
    found: list[Applied] = []
    for _, name, options in entries:
        try:
            method = build_method(name, {**shared, **options}, wanted)
            found.append(applied(method, data, weights, plan))
        except (SFLError, NotImplementedError) as error:
            raise ConfigError(f"methods={name!r} cannot be asked: {one_line(original(error))}") from error
    rows = np.sort(np.concatenate(data.population.rows))
    oracle = reference(method, weights, data.population, rows)
    probe = probe_of(data)
    probed = None if probe is None else reference(method, weights, probe, probe.rows[0])
    labels = unlike([label for label, _, _ in entries])
    return {
        "checkpoint": str(path),
        "round": index,
        "participants": list(plan.participants),
        "rows": plan.num_rows,
        "local_steps": given.local_steps,
        **told(labels, [name for _, name, _ in entries], found, oracle, probed),
    }


def plan_for(
    population: Population, seed: int, index: int, participants: int, batch_size: int, given: argparse.Namespace
) -> Plan:
    """The participants of a round, drawn uniformly, and their first batches: the same for every method."""
    available = np.flatnonzero(np.array(population.sizes))
    chosen = Uniform().select(index, available, participants, seed)
    work = Work(batch_size, 1, given.local_steps)
    return plan_round(seed, index, chosen, [population.rows[client] for client in chosen], work, "sorted")


def build_data(settings: dict[str, Any], seed: int) -> FederatedData:
    """The run's data, loaded and dealt."""
    reader = ArgumentParser(exit_on_error=False)
    reader.add_class_arguments(FederatedData, "data")
    with one_line_errors(reader):
        parsed = reader.parse_object({"data": {**settings, "seed": seed}})
        data: FederatedData = reader.instantiate_classes(parsed).data
    data.setup("fit")
    return data


def build_method(name: str, options: dict[str, Any], given: dict[str, Any]) -> SplitMethod:
    """A method with these options, and with those of `given` that it takes."""
    reader = ArgumentParser(exit_on_error=False)
    reader.add_subclass_arguments(SplitMethod, "model", required=True)
    with one_line_errors(reader):
        parsed = reader.parse_object({"model": {"class_path": name, "init_args": options}})
        for key in given.keys() & vars(parsed.model.init_args).keys():
            parsed.model.init_args[key] = given[key]
        method: SplitMethod = reader.instantiate_classes(parsed).model
    return method


@contextmanager
def one_line_errors(reader: ArgumentParser) -> Iterator[None]:
    """What is wrong with settings, in one line."""
    try:
        yield
    except SFLError:
        raise
    except (ValueError, TypeError, argparse.ArgumentError) as error:
        raise ConfigError(explain(str(error), error, reader)) from error


def every_method() -> list[str]:
    """The classes that come along and train one network, in the order of the palette."""
    classes = {name: getattr(lightning_sfl.methods, name) for name in kind_of("model").names()}
    asked = [name for name, cls in classes.items() if cls.one_network]
    return sorted(asked, key=lambda name: place_of(classes[name].name))


def unlike(labels: Sequence[str]) -> list[str]:
    """Labels of which no two are alike."""
    return [
        label if labels.count(label) == 1 else f"{label} {labels[: i + 1].count(label)}"
        for i, label in enumerate(labels)
    ]


def probe_of(data: FederatedData) -> Population | None:
    """Held-out rows; None where the data show none."""
    if data.eval_set != "val":
        return None
    return Population(data.eval_x, data.eval_y, (np.arange(min(PROBE_ROWS, len(data.eval_y))),))


Pair = tuple[Tensor, Tensor]


def told(
    labels: Sequence[str], names: Sequence[str], found: Sequence[Applied], oracle: Pair, probe: Pair | None
) -> dict[str, Any]:
    """Figures of each method, and the cosines between the methods (and, last, the oracle) for each block."""
    vectors = blocks([*((one.client, one.server) for one in found), oracle])
    probes = None if probe is None else blocks([probe])
    products = {block: gram([[row] for row in rows]) for block, rows in vectors.items()}
    methods = []
    for place, (label, name, one) in enumerate(zip(labels, names, found, strict=True)):
        figures: dict[str, Any] = {"label": label, "class": name, "name": one.name, "client_steps": one.client_steps}
        figures |= {"server_steps": one.server_steps, **own_gradients(one, None if probe is None else probe[0])}
        for block, rows in vectors.items():
            figures |= {f"{block}_{key}": value for key, value in compared(rows[place], rows[-1]).items()}
            if probes is not None:
                figures[f"{block}_B"] = compared(rows[place], probes[block][0])["D_cos"]
        methods.append({key: known(value) for key, value in figures.items()})
    cosines = {block: matrix_of(each) for block, each in products.items()}
    lengths = {block: float(rows[-1].norm()) for block, rows in vectors.items()}
    return {"labels": [*labels, "oracle"], "methods": methods, "oracle": lengths, "cosines": cosines}


def compared(gradient: Tensor, target: Tensor) -> dict[str, float]:
    """Norm, distance from the target relative to its length, and 1 - cosine."""
    distance = oracle_distance(gram(differences_from([gradient], target)), torch.ones(1, dtype=torch.float64))
    return {"norm": float(gradient.norm()), "distance": distance.G_rel**0.5, "D_cos": distance.D_cos}


def own_gradients(one: Applied, probe: Tensor | None) -> dict[str, float]:
    """Disagreement of the clients' own gradients and their mean distance in direction from the probe's, weighted as in
    the merge."""
    rows, weights = zip(*one.own.values(), strict=True)
    if not any(bool(row.any()) for row in rows):  # clients that take no step of their own
        return {}
    shares = shares_of("aggregation", weights, weights)
    apart = disagreement(gram([[row] for row in rows]), shares)
    found = {"A_ratio": apart.A_ratio, "A_null": apart.A_null}
    if probe is not None:
        found["client_C"] = probe_alignment(gram([[row] for row in (*rows, probe)]), shares).C
    return found


def matrix_of(products: Tensor) -> list[list[float | None]]:
    """Cosines; None where a vector is zero."""
    return [[known(value) for value in row] for row in cosine_matrix(products, products.diagonal() > 0).tolist()]


def known(value: Any) -> Any:
    """The value, or None where it is a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
