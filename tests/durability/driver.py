"""Kills trainings at random moments, resumes them, and compares the weights with those of a run that nobody killed.

usage: python tests/durability/driver.py FOLDER ROUNDS KILLS SEED METHOD...
Prints one line of JSON per method: kills that hit a living run, rounds found on disk after each, and the names of
tensors that differ at the end. Children fork from one parent that has imported torch, so a kill costs milliseconds.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_sfl.methods as registry
from lightning_sfl.checkpoint import DurableCheckpointIO, newest_good
from tests.tiny import build, fit, network, rows, sgd, weights


def decaying(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.8)


def train(name: str, folder: Path, rounds: int) -> None:
    """From the newest good checkpoint in `folder`, if there is one, to the end; then write the weights beside it."""
    method = build(
        getattr(registry, name), network(dropout=0.2, norm=True), participants=3, batch_size=4,
        client_optimizer=sgd(0.1, 0.9), server_optimizer=sgd(0.1, 0.9), client_scheduler=decaying,
        server_scheduler=decaying, persist_server_optimizer=True,
    )  # fmt: skip
    keep = ModelCheckpoint(folder, filename="round-{epoch:06d}", auto_insert_metric_name=False, save_top_k=-1)
    fit(
        method, rows((5, 4, 9, 2)), rounds, [keep], newest_good(folder),
        enable_checkpointing=True, plugins=DurableCheckpointIO(), default_root_dir=folder,
    )  # fmt: skip
    torch.save(weights(method), folder / "weights.pt")


def start(name: str, folder: Path, rounds: int) -> int:
    """Process id of a child that trains."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(name, folder, rounds)
            status = 0
        finally:
            os._exit(status)
    return child


def killed(child: int, after_s: float) -> bool:
    """Whether the child was still at it when the signal came."""
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def finish(name: str, folder: Path, rounds: int) -> dict[str, torch.Tensor]:
    """Weights at the end of an undisturbed child."""
    status = os.waitpid(start(name, folder, rounds), 0)[1]
    if status != 0:
        raise SystemExit(f"{name} ended with status {status}")
    found: dict[str, torch.Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return found


def rounds_on_disk(folder: Path) -> int:
    newest = newest_good(folder)
    return 0 if newest is None else int(newest.stem[-6:]) + 1


def torment(name: str, folder: Path, rounds: int, kills: int, draw: random.Random) -> dict[str, object]:
    """One uninterrupted run, one killed at random moments; what was seen."""
    began = time.monotonic()
    wanted = finish(name, folder / "whole", rounds)
    whole_s = time.monotonic() - began
    victim = folder / "killed"
    found = []
    for _ in range(kills):
        if killed(start(name, victim, rounds), draw.uniform(0.3, 0.9) * whole_s):
            found += [rounds_on_disk(victim)]
    ended = finish(name, victim, rounds)
    differing = [key for key in wanted if not torch.equal(wanted[key], ended[key])]
    return {"method": name, "kills": len(found), "found": found, "differing": differing}


def main(folder: Path, rounds: int, kills: int, seed: int, names: list[str]) -> None:
    """All methods, one after another."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name in names:
        seen = torment(name, folder / name, rounds, kills, random.Random(f"{seed} {name}"))
        sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
