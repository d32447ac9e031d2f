"""What methods would do with the same weights, the same participants and the same batches.

A method carries out one round of its own code from a checkpoint, with plain SGD at a vanishing rate: how far the merged
halves then moved, per unit of the rate, is the gradient it applies. So everything of the method is in it (scales at
the cut, sums over server steps, exchanged or replayed rows, weights of the merge) and nothing of rates, momentum or the
way gone meanwhile. Where a round has one local step per client this is a client's gradient; FedAvg and other methods
whose step is a whole round are defined by the same quotient.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from lightning_sfl.core import events
from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.core.gradients import mean_gradient, trained_parameters, untouched
from lightning_sfl.core.population import Population
from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.state import State, load_state, state_of
from lightning_sfl.methods.base import SplitMethod

RATE = 1e-7  # in double precision: rounding and curvature both stay below a millionth of what is measured
HALVES = ("client", "server")


@dataclass(frozen=True)
class Weights:
    """Both halves of a checkpoint, by the names of their parameters and buffers."""

    client: State
    server: State


@dataclass(frozen=True)
class Applied:
    """What a method would apply: one vector for each half; each client's own gradient with its weight in the merge."""

    name: str
    client: Tensor
    server: Tensor
    own: dict[int, tuple[Tensor, float]]
    client_steps: int
    server_steps: int


class Capture(L.Callback):
    """Puts the weights into a method before its round, and sees how far everything has moved after it."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.starts: dict[int, Tensor] = {}
        self.own: dict[int, tuple[Tensor, float]] = {}
        self.steps = dict.fromkeys(HALVES, 0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Everything starts from the checkpoint: both halves, and every slot and copy."""
        for half, state in ((pl_module.client_half, self.weights.client), (pl_module.server_half, self.weights.server)):
            check_fit(half, state)
        for half in (pl_module.client_half, *pl_module.slots):
            load_state(half, self.weights.client)
        for half in (pl_module.server_half, *pl_module.server_slots):
            load_state(half, self.weights.server)

    def on_round_start(self, module: Any, event: events.RoundStart) -> None:
        """Where the halves are."""
        self.before = (vector(event.client_half), vector(event.server_half))

    def on_client_start(self, module: Any, event: events.ClientStart) -> None:
        """Where a client starts."""
        self.starts[event.slot] = vector(event.client_half)

    def on_client_step(self, module: Any, event: events.ClientStep) -> None:
        """Count."""
        self.steps["client"] += len(event.turns)

    def on_server_step(self, module: Any, event: events.ServerStep) -> None:
        """Count."""
        self.steps["server"] += 1

    def on_client_end(self, module: Any, event: events.ClientEnd) -> None:
        """What a client has come to."""
        self.own[event.client_id] = ((self.starts[event.slot] - vector(event.client_half)) / RATE, event.weight)

    def on_round_end(self, module: Any, event: events.RoundEnd) -> None:
        """How far the merged halves have moved."""
        after = (vector(event.client_half), vector(event.server_half))
        client, server = ((old - new) / RATE for old, new in zip(self.before, after, strict=True))
        self.found = Applied(module.method_name, client, server, self.own, self.steps["client"], self.steps["server"])


def vector(half: nn.Module) -> Tensor:
    """All trainable parameters as one copy in double precision."""
    parameters = [parameter.detach().reshape(-1).double() for parameter in trained_parameters(half)]
    return torch.cat(parameters) if parameters else torch.zeros(0, dtype=torch.float64)


def check_fit(half: nn.Module, state: State) -> None:
    """Refuse weights of another network or cut."""
    own = {name: tuple(tensor.shape) for name, tensor in state_of(half).items()}
    if own != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise ConfigError("the checkpoint does not fit this network and cut")


def applied(method: SplitMethod, data: Any, weights: Weights, plan: Plan) -> Applied:
    """One round of the method's own code on this plan, from these weights, which stay as they are."""
    rate = partial(torch.optim.SGD, lr=RATE)
    method.factories = {role: (factory and rate, None) for role, (factory, _) in method.factories.items()}
    method.clips = dict.fromkeys(method.clips)
    method.plan = lambda index: method.follow(replace(plan, index=index))  # type: ignore[method-assign]
    capture = Capture(weights)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    trainer = L.Trainer(
        max_epochs=1, precision="64-true", accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
        use_distributed_sampler=False, log_every_n_steps=1, callbacks=[capture],
    )  # fmt: skip
    trainer.fit(method, data)
    return capture.found


def reference(method: SplitMethod, weights: Weights, population: Population, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Gradients of both halves on these rows, at these weights; `method` gives halves and loss and was trained once."""
    halves = (method.client_half.double(), method.server_half.double())
    for half, state in zip(halves, (weights.client, weights.server), strict=True):
        load_state(half, state)
    owned = [trained_parameters(half) for half in halves]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with untouched(halves, "running", population.x.device):
            found = mean_gradient(method.loss, halves, population, rows, [*owned[0], *owned[1]])
    finally:
        torch.set_default_dtype(before)
    flat = [gradient.reshape(-1) for gradient in found]
    empty = torch.zeros(0, dtype=torch.float64)
    count = len(owned[0])
    return torch.cat([empty, *flat[:count]]), torch.cat([empty, *flat[count:]])


def weights_of(checkpoint: Mapping[str, Any], path: Path) -> Weights:
    """The halves that a checkpoint of any method holds."""
    state = checkpoint.get("state_dict", {})
    halves = [
        {
            name.removeprefix(f"{half}_half."): tensor
            for name, tensor in state.items()
            if name.startswith(f"{half}_half.")
        }
        for half in HALVES
    ]
    require(bool(halves[0] or halves[1]), "checkpoint", str(path), "one that fit wrote: this one holds no halves")
    return Weights(*halves)


def blocks(found: Sequence[tuple[Tensor, Tensor]]) -> dict[str, list[Tensor]]:
    """The client halves', the server halves' and the whole vectors."""
    client, server = ([pair[place] for pair in found] for place in (0, 1))
    return {"client": client, "server": server, "full": [torch.cat(pair) for pair in found]}
