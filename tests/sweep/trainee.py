"""Stands in for train.py: leaves the files of a run, a round every few milliseconds, and goes on where it was stopped.

A run whose settings name `batch_size=13` fails after its first round; `SLEEP_S` in the environment slows rounds down.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path


def main() -> None:
    text = " ".join(sys.argv[1:])
    found = dict(a[2:].split("=", 1) for a in sys.argv[1:] if "=" in a)
    rounds = int(found.get("trainer.max_epochs", 3))
    resumed = re.search(r"--resume (\S+)", text)
    folder = Path(resumed[1]) if resumed else Path(found["trainer.default_root_dir"]) / "sfl" / "version_0"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "rounds.jsonl"
    done = log.read_text().count("\n") if resumed and log.exists() else 0
    (folder / "config.yaml").write_text(f"trainer: {{max_epochs: {rounds}}}\nseed_everything: 0\n")
    with (folder / "starts.txt").open("a") as starts:
        starts.write(f"{os.getpid()} {done} {text}\n")
    for round in range(done, rounds):
        time.sleep(float(os.environ.get("SLEEP_S", "0")))
        if round == 1 and "batch_size=13" in text:
            sys.exit("Traceback (most recent call last):\nerror: thirteen is too many\n")
        record = {"round": round, "schema": 1, "method": "sfl", "scalars": {"val/acc": 0.5}, "clients": {}}
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
