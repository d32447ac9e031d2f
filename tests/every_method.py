"""Every method there is, and what has to be said of it where all are tested alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning_sfl.methods as registry
from lightning_sfl.core.activation_buffer import Generation
from lightning_sfl.core.balancing import Balancing
from lightning_sfl.core.byzantine import Byzantine
from lightning_sfl.core.gradient_shuffle import GradientShuffle
from lightning_sfl.core.holograd.basis import BasisChoice
from lightning_sfl.core.holograd.robust import Robust
from lightning_sfl.core.label_selection import LabelAware
from lightning_sfl.core.mixing import GradMix, SmashMix
from lightning_sfl.core.replay import Replay
from lightning_sfl.core.staleness import Hinge, Polynomial
from lightning_sfl.core.stragglers import Stragglers
from lightning_sfl.methods import (
    CA2FL,
    CFL,
    GAS,
    IFCA,
    SCALA,
    SFLV1,
    USFL,
    FedAsync,
    FedAvg,
    FedBuff,
    FedSGD,
    HoloGrad,
    Mix2SFL,
    MultiSFL,
    PerFedAvg,
    Reptile,
    ScaffoldSFL,
    SFLProx,
    SplitMethod,
)

METHODS: list[type[SplitMethod]] = [
    entry
    for entry in (getattr(registry, name) for name in registry.__all__)
    if isinstance(entry, type) and issubclass(entry, SplitMethod) and entry is not SplitMethod
]
UNCUT = ("FedAvg", "FedSGD", "FedAsync", "FedBuff", "CA2FL", "PerFedAvg", "Reptile", "IFCA", "CFL", "HoloGrad")
UNCUT += ("Centralized",)
CUT_METHODS = [method for method in METHODS if method.__name__ not in UNCUT]

# Methods whose slots, with their optimizers, go on from round to round.
PERSISTENT: list[type[SplitMethod]] = [MultiSFL, GAS, FedAsync, FedBuff, CA2FL]

# Methods whose clients come and go while a round runs.
ASYNCHRONOUS: list[type[SplitMethod]] = [GAS, FedAsync, FedBuff, CA2FL]

# Options of the base that a method fixes itself, and therefore does not take.
FIXED: dict[type[SplitMethod], set[str]] = {
    FedAvg: {"server_optimizer", "server_scheduler", "server_clip", "persist_server_optimizer"},
    FedAsync: {"server_optimizer", "server_scheduler", "server_clip", "persist_server_optimizer", "weighting"},
    FedBuff: {"server_optimizer", "server_scheduler", "server_clip", "persist_server_optimizer"},
    CA2FL: {"server_optimizer", "server_scheduler", "server_clip", "persist_server_optimizer"},
    PerFedAvg: {"server_optimizer", "server_scheduler", "server_clip", "persist_server_optimizer"},
    Reptile: {"server_optimizer", "server_scheduler", "server_clip", "persist_server_optimizer"},
    IFCA: {"server_optimizer", "server_scheduler", "server_clip", "persist_server_optimizer"},
    CFL: {"server_optimizer", "server_scheduler", "server_clip", "persist_server_optimizer"},
    SFLV1: {"persist_server_optimizer"},
    FedSGD: {"client_optimizer", "client_scheduler", "client_clip", "batch_size", "local_epochs", "local_steps"},
    HoloGrad: {"client_optimizer", "client_scheduler", "client_clip", "batch_size", "local_epochs", "local_steps"},
    MultiSFL: {"weighting"},
}

# Methods whose clients take plain steps: where a test gives momentum to all, they get its rate alone.
PLAIN_STEPS: list[type[SplitMethod]] = [ScaffoldSFL]

# Every row takes part, in the plain objective, so that all methods are comparable.
PLAIN: dict[type[SplitMethod], dict[str, Any]] = {
    GAS: {"prior_exponent": 0.0, "generation": Generation(every=0)},
    FedAsync: {"mixing": 1.0},
    PerFedAvg: {"adapt_lr": 0.0},
    Reptile: {"rate": 1.0},
    IFCA: {"clusters": 1},
    CFL: {"eps2": None},
    USFL: {"balancing": Balancing("none")},
    SCALA: {"logit_adjustment": False},
    HoloGrad: {"num_scalars": 151, "directions": "orthogonal"},  # the small network's parameters: nothing is left out
}

# Whatever a method can do at once; made anew for each use, since a selection remembers.
RICH: dict[type[SplitMethod], Callable[[], dict[str, Any]]] = {
    USFL: lambda: {
        "balancing": Balancing("target", allow_missing_labels=True),
        "gradient_shuffle": GradientShuffle("random"),
        "selection": LabelAware(usage="fresh"),
        "server_batch_size": 7,
        "scale_client_gradient": True,
        "local_epochs": 2,
    },
    SCALA: lambda: {"logit_adjustment": True, "server_batch_size": 7, "local_epochs": 2},
    Mix2SFL: lambda: {
        "smashmix": SmashMix(ratio=0.7, distribution="beta", unequal="truncate"),
        "gradmix": GradMix(phi=0.7, reduce="mean", members="each_round"),
        "local_epochs": 2,
    },
    GAS: lambda: {"prior_exponent": 1.0, "generation": Generation(partial=True), "local_server_buffers": "trained"},
    FedAsync: lambda: {"mixing": 0.6, "staleness": Hinge(tolerated=1), "client_momentum": "shared"},
    PerFedAvg: lambda: {"adapt_lr": 0.1, "variant": "hf"},
    Reptile: lambda: {"rate": 0.5, "weighting": "rows"},
    IFCA: lambda: {"clusters": 3},
    CFL: lambda: {"eps1": 0.3, "eps2": 0.3},
    SFLProx: lambda: {"prox_mu": 0.5},
    FedBuff: lambda: {"staleness": Polynomial(), "weighting": "samples", "model_buffer": 2},
    CA2FL: lambda: {"weighting": "samples", "model_buffer": 2, "max_staleness": 1},
    HoloGrad: lambda: {
        "num_scalars": 60,
        "basis": BasisChoice("subspace", rank=8),
        "robust": Robust("median"),  # at any number of clients; a trimmed mean warns where it drops none
        "byzantine": Byzantine(0.25, "noise"),
        "stragglers": Stragglers("window", window_s=0.2),
    },
    MultiSFL: lambda: {"replay": Replay(proportion=0.5, most=0.9, placement="spread"), "client_forward": "double_eval"},
}


def rich_of(cls: type[SplitMethod]) -> dict[str, Any]:
    """Options that have this method do everything it can."""
    return RICH[cls]() if cls in RICH else {}
