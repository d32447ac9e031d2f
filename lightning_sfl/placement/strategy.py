"""Lightning's strategy for several processes: those of DDP without its wrapper, which a split backward breaks."""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn

from lightning_sfl.core.state import copy_state, state_of
from lightning_sfl.placement.choice import link_for
from lightning_sfl.placement.post import Post
from lightning_sfl.placement.settings import Placement


class SplitStrategy(DDPStrategy):
    """Gives the method its link to the other processes; nothing is wrapped and no gradient is averaged behind its back.

    Args:
        placement: which process holds which half.
        options: of Lightning's DDPStrategy.
    """

    strategy_name = "split"

    def __init__(self, placement: Placement = Placement(), **options: Any) -> None:  # noqa: B008
        super().__init__(timeout=timedelta(seconds=placement.timeout_s), **options)
        self.placement = placement

    def configure_ddp(self) -> None:
        """Nothing is wrapped."""

    def setup(self, trainer: Trainer) -> None:
        """Link the method to the other processes, and have all of them start from the weights of the first."""
        warnings.filterwarnings("ignore", message=".*sync_dist=True")  # what is logged is the same in every process
        super().setup(trainer)
        method: Any = self.lightning_module
        post = Post(self.root_device, self.placement.timeout_s)
        if trainer.state.fn == TrainerFn.FITTING:
            method.link = link_for(self.placement, method, post)
            same_start(method, post)


def same_start(method: Any, post: Post) -> None:
    """Write the first process's halves over all others, and over their slots."""
    halves = {"client": method.client_half, "server": method.server_half}
    live = [tensor for half in halves.values() for tensor in state_of(half).values()]
    others = range(1, post.size)
    outgoing = dict.fromkeys(others, live) if post.rank == 0 else {}
    letters = post.exchange("first weights", outgoing, [] if post.rank == 0 else [0])
    with torch.no_grad():
        for letter in letters.values():
            for tensor, sent in zip(live, letter, strict=True):
                tensor.copy_(sent)
    for slots, half in ((method.slots, method.client_half), (method.server_slots, method.server_half)):
        for slot in slots:
            copy_state(half, slot)


StrategyRegistry.register("split", SplitStrategy, description="the processes of DDP without its wrapper", override=True)
