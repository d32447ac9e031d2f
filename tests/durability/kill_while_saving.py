"""Kills a process that saves checkpoints, again and again, and counts what was lost.

usage: python tests/durability/kill_while_saving.py FOLDER KILLS
Prints one line of JSON: kills, checkpoints saved, kills that left a part behind, losses. Children fork from one parent
that has imported torch, so a kill costs milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from lightning_sfl import durable
from lightning_sfl.checkpoint import DurableCheckpointIO, newest_good


def save_until_killed(folder: Path, round: int, acknowledge: int) -> None:
    """Save round after round, keep two files, report each round once it is saved."""
    io = DurableCheckpointIO()
    while True:
        round += 1
        weight = torch.full((200_000,), float(round))
        io.save_checkpoint({"epoch": round, "weight": weight}, folder / f"round-{round:06d}.ckpt")
        os.write(acknowledge, f"{round}\n".encode())
        io.remove_checkpoint(folder / f"round-{round - 2:06d}.ckpt")


def killed_after(seconds: float, folder: Path, round: int) -> int:
    """The last round that a child reported before it was killed, or `round`."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        save_until_killed(folder, round, writable)
    os.close(writable)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(readable) as reports:
        return max([round, *map(int, reports)])


def round_on_disk(folder: Path) -> int:
    """The round of the newest good checkpoint, or 0; a file whose content is of another round counts as none."""
    newest = newest_good(folder)
    if newest is None:
        return 0
    found = DurableCheckpointIO(fall_back=False).load_checkpoint(newest)
    intact = bool((found["weight"] == found["epoch"]).all()) and f"{found['epoch']:06d}" in newest.name
    return int(found["epoch"]) if intact else 0


def main(folder: Path, kills: int) -> None:
    """Kill, look, go on from what was found."""
    draw = random.Random(0)
    round = leftovers = losses = 0
    for _ in range(kills):
        reported = killed_after(draw.uniform(0.002, 0.05), folder, round)
        leftovers += any(folder.glob("*" + durable.PART))
        durable.sweep(folder)
        round = round_on_disk(folder)
        losses += round < reported or any(folder.glob("*" + durable.PART))
    sys.stdout.write(json.dumps({"kills": kills, "saved": round, "leftovers": leftovers, "losses": losses}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
