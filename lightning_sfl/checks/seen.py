"""What a check sees of a run: its events, its plans, the network it ends with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from lightning_sfl.checks.states import kept
from lightning_sfl.core import events
from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.split import Split
from lightning_sfl.methods.base import SplitMethod

Factory = Callable[[Any], torch.optim.Optimizer]
Numbers = dict[str, Tensor]


class Seen(L.Callback):
    """Keeps every event, and the loss of every round."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.losses: list[float] = []
        for record in events.Event.__args__:
            setattr(self, record.handler, self._keep)

    def _keep(self, module: SplitMethod, event: Any) -> None:
        self.events.append(event)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        self.losses.append(cast(SplitMethod, pl_module).tally.read()[0])

    def of(self, record: type[Any]) -> list[Any]:
        """Events of this kind, in their order."""
        return [event for event in self.events if isinstance(event, record)]


def whole(method: SplitMethod) -> Numbers:
    """A copy of the merged network's state by its own names."""
    return kept(method.client_half) | kept(method.server_half)


def plans_of(method: SplitMethod) -> list[Plan]:
    """The list into which every plan of the method goes from now on."""
    made: list[Plan] = []
    own = method.plan

    def noted(index: int) -> Plan:
        made.append(own(index))
        return made[-1]

    method.plan = noted  # type: ignore[method-assign]
    return made


def with_rates(method: SplitMethod, client: float, server: float) -> SplitMethod:
    """The method with plain SGD of these learning rates, no schedules and no clipping."""
    for role, rate in (("client", client), ("server", server)):
        if method.factories[role][0] is not None:
            method.factories[role] = (plain(rate), None)
    method.clips = dict.fromkeys(method.clips)
    return method


def plain(rate: float) -> Factory:
    """Plain SGD."""
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def modules_of(found: Split, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Copies of both halves in this type."""
    client, server = (copy.deepcopy(half).to(dtype) for half in (found.client_half, found.server_half))
    return client, server
