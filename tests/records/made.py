"""Runs made by hand: folders with rounds.jsonl, config.yaml and run.json that say exactly what a test wants."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 4, "precision": None, "default_root_dir": "runs"},
    "model": {
        "class_path": "lightning_sfl.SFL",
        "init_args": {
            "backbone": {"class_path": "lightning_sfl.backbones.DigitsCNN", "init_args": {"num_classes": 10}},
            "client_optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            "server_optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            "batch_size": 10,
        },
    },
    "data": {"partition": {"class_path": "lightning_sfl.data.Dirichlet", "init_args": {"alpha": 0.3}}},
    "traffic": {"every": 1},
}
MANIFEST: dict[str, Any] = {
    "revision": 1,
    "partition": "aaaa0000",
    "schedule": "bbbb0000",
    "cut_layer": "pool",
    "client_parameters": 4800,
    "server_parameters": 33482,
    "device": "cpu",
    "threads": 1,
    "versions": {"torch": "2.13.0"},
}


def scalars(round: int, accuracy: float, server_steps: int = 4, **more: float) -> dict[str, float]:
    """A round with 4 client steps and 2 MB, one up and one down."""
    return {
        "val/acc": accuracy,
        "count/client_steps_total": 4 * (round + 1),
        "count/server_steps_total": server_steps * (round + 1),
        "count/samples_main_total": 40 * (round + 1),
        "traffic/smashed_up_bytes": 900_000,
        "traffic/labels_up_bytes": 100_000,
        "traffic/up_bytes": 1_000_000,
        "traffic/down_bytes": 1_000_000,
        "traffic/cut_gradients_down_bytes": 1_000_000,
        "traffic/total_bytes": 2_000_000 * (round + 1),
        "cut/scale_rel_mean": 1.0,
        "cut/denom_mean": 10.0,
        "init/dist": 0.0,
        "disagree/A_ratio": 0.8,
        "disagree/A_null": 0.9,
        "align/cos_pair_client": 0.1,
        "align/norm_mean": 0.4,
        "gdiv/client_rel": 1.5,
        "labels/imbalance": 0.25,
        **{name.replace("__", "/"): value for name, value in more.items()},
    }


def run(
    folder: Path,
    accuracies: Sequence[float],
    method: str = "SFL",
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A run of these accuracies. settings: dotted keys of the config; facts: entries of run.json; more: scalars."""
    folder.mkdir(parents=True)
    name = {"SFLV1": "sfl_v1", "SFLV2": "sfl_v2"}.get(method, method.lower())
    records = [
        {
            "round": round,
            "schema": 1,
            "method": name,
            "weights_scheme": "samples",
            "scalars": scalars(round, accuracy, **more),
            "clients": {"1": {"cut_scale_rel": 1.0}, str(2 + round % 2): {"cut_scale_rel": 1.0}},
        }
        for round, accuracy in enumerate(accuracies)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(method, seed, settings or {})))
    manifest = {**MANIFEST, "method": name, "seed": seed, "rounds": 4, **(facts or {})}
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


def config_of(method: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    config["seed_everything"] = seed
    config["model"]["class_path"] = f"lightning_sfl.{method}"
    for key, value in settings.items():
        node, *path = config, *key.split(".")
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
    return config
