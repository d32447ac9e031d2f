"""What a run is and what it met, gathered for its manifest."""

from __future__ import annotations

import platform
from typing import Any

import lightning as L
import torch
from torch import nn

from lightning_sfl import __version__
from lightning_sfl.callbacks.stop_at import StopAt
from lightning_sfl.records.manifest import Manifest


def facts_of(trainer: L.Trainer, module: Any) -> Manifest:
    """Method, seed, fingerprints, cut, parameters of both halves, and what results hang on besides: plain values."""
    rounds = max(0, trainer.max_epochs or 0)
    cut = module.split.certificate
    return {
        "method": str(module.method_name),
        "revision": int(module.revision),
        "seed": int(module.seed),
        "rounds": rounds,
        "clients": module.population.num_clients,
        "partition": module.population.fingerprint,
        "schedule": module.fingerprint_of(rounds),
        "cut_layer": cut.cut_layer,
        "cut_way": cut.way,
        "bytes_per_sample": cut.bytes_per_sample,
        "client_parameters": cut.client_parameters,
        "server_parameters": cut.server_parameters,
        "batch_norm": [half for half in ("client", "server") if normalises_batches(getattr(module, f"{half}_half"))],
        "dynamics": module.dynamics.matched,
        "stop_at": {
            key: budget for one in trainer.callbacks if isinstance(one, StopAt) for key, budget in one.budgets.items()
        },
        "device": module.device.type,
        "threads": torch.get_num_threads(),
        "versions": {
            "lightning_sfl": __version__,
            "torch": torch.__version__,
            "lightning": L.__version__,
            "python": platform.python_version(),
        },
    }


def normalises_batches(half: nn.Module) -> bool:
    """Whether a layer normalises over a batch in training: gradients of pooled rows are then no means of rows'."""
    return any(getattr(layer, "running_mean", None) is not None for layer in half.modules())
