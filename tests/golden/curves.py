"""What is on record: the training losses of every method over five rounds on the tiny network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from lightning_sfl.methods import SplitMethod
from tests.every_method import METHODS, rich_of
from tests.tiny import Recorder, build, fit, network, rows, sgd

FOLDER = Path(__file__).resolve().parent
ROUNDS = 5


def losses(cls: type[SplitMethod]) -> list[float]:
    """Training loss of each round: some of the clients, momentum, dropout, batch normalisation, ragged batches."""
    recorder = Recorder()
    optimizers = {"client_optimizer": sgd(0.1, 0.9), "server_optimizer": sgd(0.1, 0.9)}
    options = {"participants": 3, "batch_size": 4, **optimizers, **rich_of(cls)}
    method = build(cls, network(dropout=0.1, norm=True), "relu1", **options)
    fit(method, rows((5, 4, 9, 2, 7)), ROUNDS, [recorder])
    return recorder.losses


def arithmetic() -> dict[str, str]:
    """What bits depend on besides our code: torch, and how this machine multiplies and takes exponentials."""
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 8, generator=draw), torch.randn(8, 7, generator=draw)
    results = [a @ b, (a @ b).log_softmax(1), a.exp(), (a.T @ a).sum(0), torch.rand(64, generator=draw)]
    digest = hashlib.sha256(b"".join(r.numpy().tobytes() for r in results)).hexdigest()[:16]
    return {"torch": torch.__version__.split("+")[0], "probe": digest}


def recorded(name: str) -> dict[str, Any]:
    """What stands in the file of a method."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def record() -> None:
    """Write one file per method."""
    for cls in METHODS:
        exact = [loss.hex() for loss in losses(cls)]
        content = {"method": build(cls).method_name, **arithmetic(), "train_loss": exact}
        (FOLDER / f"{content['method']}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
