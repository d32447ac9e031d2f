"""Lightning's strategy for several processes: those of DDP without its wrapper, which a split backward breaks."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from lightning_sfl.core.errors import PlacementError
from lightning_sfl.core.state import copy_state, state_of
from lightning_sfl.placement.choice import link_for
from lightning_sfl.placement.ending import Starter
from lightning_sfl.placement.fabric import joined
from lightning_sfl.placement.optimizer_states import complete
from lightning_sfl.placement.post import PATIENCE_S, Post
from lightning_sfl.placement.settings import Placement
from lightning_sfl.placement.wire import read, spelled


class SplitStrategy(DDPStrategy):
    """Gives the method its link to the other processes; nothing is wrapped and no gradient is averaged behind its back.

    What Lightning itself wants to know of other processes travels by our post as well: with its time-out, unpickled.

    Args:
        placement: which process holds which half.
        options: of Lightning's DDPStrategy.
    """

    strategy_name = "split"
    post: Post | None = None

    def __init__(self, placement: Placement = Placement(), **options: Any) -> None:
        super().__init__(timeout=timedelta(seconds=max(placement.timeout_s, PATIENCE_S)), **options)
        self.placement = placement

    def _configure_launcher(self) -> None:
        self._launcher = Starter(self.cluster_environment, self.num_processes, self.num_nodes)

    def configure_ddp(self) -> None:
        """Nothing is wrapped."""

    def setup_environment(self) -> None:
        """Start the processes' group, and the post between them."""
        try:
            super().setup_environment()
        except RuntimeError as error:
            meeting = f"{self.cluster_environment.main_address}:{self.cluster_environment.main_port}"
            late = "imed out" in str(error)
            why = "not all came in time" if late else "the address is taken or out of reach"
            raise PlacementError(f"{self.world_size} processes could not meet at {meeting}: {why}") from error
        self.fabric = joined(self)
        self.post = Post(self.fabric.device, self.placement.timeout_s)

    def setup(self, trainer: Trainer) -> None:
        """Link the method to the other processes, and have all of them start from the weights of the first."""
        warnings.filterwarnings("ignore", message=".*sync_dist=True")  # what is logged is the same in every process
        super().setup(trainer)
        method: Any = self.lightning_module
        if trainer.state.fn == TrainerFn.FITTING:
            method.link = link_for(self.placement, method, self.post, partial(self.fabric.all_reduce, reduce_op="sum"))
            same_start(method, self.post)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What a checkpoint holds of an optimizer: the state of all clients, wherever they are trained."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        method: Any = self.lightning_module
        clients = dict(zip(method.roles, self.optimizers, strict=True)).get("client")
        if clients is optimizer and method.lasting("client") and not method.link.alone:
            per_slot = len(list(method.slots[0].parameters()))
            state = {**state, "state": complete(state["state"], method.link, per_slot)}
        return state

    # --- what Lightning asks ----------------------------------------------------------------------------------------

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all processes."""
        if self.post is not None:
            self.post.gather(torch.zeros(0))

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """A plain value as one process has it."""
        if self.post is None:
            return obj
        return read(self.post.tell(spelled(os.fspath(obj) if isinstance(obj, os.PathLike) else obj), src))

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Sum or mean over the processes, added up in their order."""
        if not isinstance(tensor, Tensor) or self.post is None:
            return tensor
        total = torch.stack(self.post.gather(tensor)).sum(dim=0)
        summed = str(reduce_op).lower() in ("sum", "reduceop.sum") or reduce_op == dist.ReduceOp.SUM
        return (total if summed else total / self.post.size).to(tensor.device)


def same_start(method: Any, post: Post) -> None:
    """Write the first process's halves over all others, and over their slots."""
    live = [tensor for half in (method.client_half, method.server_half) for tensor in state_of(half).values()]
    speaking = post.rank == 0
    letters = post.exchange("first weights", post.to_others(live) if speaking else {}, [] if speaking else [0])
    with torch.no_grad():
        for letter in letters.values():
            for tensor, sent in zip(live, letter, strict=True):
                tensor.copy_(sent)
    for slots, half in ((method.slots, method.client_half), (method.server_slots, method.server_half)):
        for slot in slots:
            copy_state(half, slot)


StrategyRegistry.register("split", SplitStrategy, description="the processes of DDP without its wrapper", override=True)
