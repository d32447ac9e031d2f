"""Lightning's side of every method: halves, slots and optimizers. No algorithm stands here."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lightning_sfl.core.aggregation import BufferPolicy, Weighting
from lightning_sfl.core.batchnorm import apply_one_row_rule
from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.core.optimizers import make_optimizer, make_schedule
from lightning_sfl.core.population import Population
from lightning_sfl.core.rounds import ClientOrder, Work
from lightning_sfl.core.selection import Selector, Uniform
from lightning_sfl.core.split import Split, split
from lightning_sfl.methods.evaluation import EvaluatedModule

Role = Literal["client", "server"]


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The default of both halves: plain SGD, learning rate 0.1."""
    return torch.optim.SGD(parameters, lr=0.1)


class SplitModule(EvaluatedModule):
    """A network cut in two, the clients' slots, and one optimizer for each side.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half, as `train.py cuts` lists them.
        client_optimizer: optimizer of the client halves, restarted every round.
        server_optimizer: optimizer of the server half, restarted every round unless `persist_server_optimizer`.
        client_scheduler: learning-rate schedule of the clients, one step per round.
        server_scheduler: learning-rate schedule of the server, one step per round.
        participants: clients that take part in a round (all, when fewer have data).
        selection: who they are; uniform without replacement by default.
        batch_size: rows per client and local step; null for all rows of the client at once.
        local_epochs: passes over its own data that a client makes in a round.
        local_steps: instead of local_epochs, this many batches, however small the client is.
        weighting: a client's weight in the merge: its number of samples, of rows trained on in this round, or uniform.
        bn_buffers: buffers such as BatchNorm's statistics are averaged like weights, or taken from the first client, or
            `local` (FedBN, ICLR 2021): a client that takes part again goes on with its own batch-norm layers, weights
            and statistics; the network that is judged, and new clients, have the average of the last participants'.
        client_order: order in which the server meets the clients: by id, as selected, or shuffled every round.
        client_clip: largest gradient norm of a client half, null for no clipping.
        server_clip: largest gradient norm of the server half, null for no clipping.
        persist_server_optimizer: keep momentum and moments of the server half from round to round.
        seed: all draws of the run follow from it.
    """

    name: ClassVar[str] = ""
    revision: ClassVar[int] = 1
    server_copies: ClassVar[bool] = False

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        *,
        client_optimizer: OptimizerCallable | None = sgd,
        server_optimizer: OptimizerCallable | None = sgd,
        client_scheduler: LRSchedulerCallable | None = None,
        server_scheduler: LRSchedulerCallable | None = None,
        participants: int = 10,
        selection: Selector | None = None,
        batch_size: int | None = 10,
        local_epochs: int = 1,
        local_steps: int | None = None,
        weighting: Weighting = "samples",
        bn_buffers: BufferPolicy = "average",
        client_order: ClientOrder = "sorted",
        client_clip: float | None = None,
        server_clip: float | None = None,
        persist_server_optimizer: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require(participants >= 1, "participants", participants, "an integer >= 1")
        require(
            batch_size is None or batch_size >= 1, "batch_size", batch_size, "an integer >= 1, or null for all rows"
        )
        require(local_epochs >= 1, "local_epochs", local_epochs, "an integer >= 1")
        require(local_steps is None or local_steps >= 1, "local_steps", local_steps, "an integer >= 1, or null")
        for key, norm in {"client_clip": client_clip, "server_clip": server_clip}.items():
            require(norm is None or 0 < norm < float("inf"), key, norm, "a finite number > 0, or null")
        require(0 <= seed < 2**63, "seed", seed, "an integer from 0 to 2**63 - 1")
        self.automatic_optimization = False
        self.backbone = (backbone,)  # a tuple, so that its parameters are not registered beside those of the halves
        self.cut_layer = cut_layer
        self.factories = {
            "client": (client_optimizer, client_scheduler),
            "server": (server_optimizer, server_scheduler),
        }
        self.participants = participants
        self.selection = selection or Uniform()
        self.work = Work(batch_size, local_epochs, local_steps)
        self.weighting: Weighting = weighting
        self.bn_buffers: BufferPolicy = bn_buffers
        self.client_order: ClientOrder = client_order
        self.clips: dict[Role, float | None] = {"client": client_clip, "server": server_clip}
        self.persist_server_optimizer = persist_server_optimizer
        self.seed = seed
        self.population: Population | None = None

    # --- the halves -------------------------------------------------------------------------------------------------

    @property
    def method_name(self) -> str:
        """The name in configs, records and file names."""
        return self.name or type(self).__name__.lower()

    def setup(self, stage: str) -> None:
        """Lightning's hook."""
        self.prepare(self.data, stage)

    def prepare(self, data: Any, stage: str) -> None:
        """Cut the network on a batch of the data, once, and note who has rows to train on."""
        if not self.is_cut and not hasattr(data, "example"):
            raise ConfigError(f"data={type(data).__name__} is not allowed: it must have example() and population")
        if stage == "fit":
            self.population = data.population
            self.num_clients = self.population.num_clients
            self.available = np.flatnonzero(np.array(self.population.sizes))
        if not self.is_cut:
            self.cut(data.example())
            self.check_logits(data)

    @property
    def is_cut(self) -> bool:
        return "client_half" in self._modules

    def cut(self, example: Tensor) -> None:
        """Cut the network, proving the cut on `example` (rows, ...), and make the participants' slots."""
        self.split: Split = split(self.backbone[0], self.cut_layer, example)
        self.example = {"shape": list(example.shape), "dtype": str(example.dtype).removeprefix("torch.")}
        self.client_half, self.server_half = self.split.client_half, self.split.server_half
        for half in (self.client_half, self.server_half):
            apply_one_row_rule(half)
        count = self.num_slots
        self.slots = nn.ModuleList(copy.deepcopy(self.client_half) for _ in range(count))
        copies = count if self.server_copies else 0
        self.server_slots = nn.ModuleList(copy.deepcopy(self.server_half) for _ in range(copies))
        self.to(self.device)

    @property
    def num_slots(self) -> int:
        """Clients that may be active in one round; memory grows with them, never with the population."""
        most = self.selection.most(self.asked)
        return most if self.population is None else min(most, max(1, len(self.available)))

    def server_of(self, slot: int) -> nn.Module:
        """The server half that learns from this slot: the one there is, or the slot's private copy."""
        return self.server_slots[slot] if self.server_copies else self.server_half

    # --- optimizers -------------------------------------------------------------------------------------------------

    def trained(self) -> dict[Role, list[nn.Parameter]]:
        """What each optimizer steps."""
        server = self.server_slots if self.server_copies else self.server_half
        return {"client": list(self.slots.parameters()), "server": list(server.parameters())}

    def configure_optimizers(self) -> list[dict[str, Any]]:
        """Lightning's hook: the client optimizer, then the server optimizer, each with its schedule if it has one."""
        self.backward_hooked = self.somebody_fills_in("on_before_backward", "on_after_backward")
        self.step_hooked = self.somebody_fills_in("on_before_optimizer_step", "optimizer_step")
        configured = []
        halves = [self.client_half, self.server_half, *self.slots, *self.server_slots]
        self.parameters_of = {half: list(half.parameters()) for half in halves}
        self.stepped = self.trained()
        self.roles: list[Role] = list(self.stepped)
        for role, parameters in self.stepped.items():
            optimizer, schedule = self.build_optimizer(role, parameters)
            configured.append({"optimizer": optimizer} | ({} if schedule is None else {"lr_scheduler": schedule}))
        return configured

    def build_optimizer(
        self, role: Role, parameters: list[nn.Parameter]
    ) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
        """A fresh optimizer of one side and its schedule; settings that cannot work are refused."""
        factory, scheduler_factory = self.factories[role]
        optimizer = make_optimizer(f"{role}_optimizer", factory, parameters)
        schedule = scheduler_factory and make_schedule(f"{role}_scheduler", scheduler_factory, optimizer)
        return optimizer, schedule

    def optimizer(self, role: Role) -> LightningOptimizer:
        """The wrapped optimizer of one side; steps must go through it, for precision plugins, hooks and checkpoints."""
        wrapped = self.optimizers()
        return wrapped[self.roles.index(role)] if isinstance(wrapped, list) else wrapped  # type: ignore[return-value]

    def forget_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set gradients to None, so that optimizers leave alone what gets none in this step."""
        for parameter in parameters:
            parameter.grad = None

    def learning_rates(self) -> dict[Role, float]:
        """The rate each side's optimizer has in this round."""
        return {role: float(self.optimizer(role).optimizer.param_groups[0]["lr"]) for role in self.roles}

    def step_schedules(self) -> None:
        """One step of every learning-rate schedule; Lightning leaves this to us under manual optimization."""
        schedules = self.lr_schedulers() or []
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            schedule.step()  # type: ignore[call-arg]

    def somebody_fills_in(self, *hooks: str) -> bool:
        """Whether this module or a callback of the Trainer overrides one of these hooks of Lightning's."""
        own = any(is_overridden(hook, self, LightningModule) for hook in hooks)
        shared = [hook for hook in hooks if hasattr(Callback, hook)]
        return own or any(is_overridden(hook, who, Callback) for hook in shared for who in self.trainer.callbacks)

    def step(self, role: Role) -> None:
        """One optimizer step, counted by the Trainer; Lightning's hooks are called only when somebody fills them in."""
        wrapped = self.optimizer(role)
        if self.step_hooked:
            wrapped.step()
        else:
            wrapped._on_before_step()
            wrapped.optimizer.step()
            wrapped._on_after_step()

    def walk_back(self, roots: Sequence[Tensor], gradients: Sequence[Tensor] | None = None) -> None:
        """One walk back through the graphs of all roots: losses, or smashed data with their cut gradients.

        Hooks are all that Lightning's way adds at the precisions we admit, none of which scales a loss, and they cost a
        third of a small server step; so it is taken only when somebody fills one in.
        """
        if self.backward_hooked:
            self.manual_backward(roots[0], roots, gradients)
        else:
            torch.autograd.backward(roots, gradients)

    def backward(self, loss: Tensor, roots: Sequence[Tensor], gradients: Sequence[Tensor] | None) -> None:
        """Lightning's hook behind `manual_backward`."""
        torch.autograd.backward(roots, gradients)
