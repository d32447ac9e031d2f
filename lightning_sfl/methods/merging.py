"""How the clients' halves become one at the end of a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from lightning_sfl.core.aggregators import Aggregator, WeightedAverage
from lightning_sfl.core.errors import require
from lightning_sfl.core.optimizers import make_optimizer
from lightning_sfl.core.state import State, buffers_of, load_state, state_of
from lightning_sfl.methods.own_norms import OwnNorms


class Merging(OwnNorms):
    """Puts what clients hand in together.

    why_only_averaged, why_not_moved: what to answer where another aggregator, or a merge optimizer, has no meaning; the
    first answers for the second, too, unless that is given (empty: a merge optimizer has one).
    why_not_together: what to answer where clients are not drawn for a round and do not hand in together.
    why_not_compared: what to answer where what is merged cannot be compared with the merge before.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        aggregator: what is made of the clients' halves, together with their copies of the server half where they have
            such; the weighted average by default.
        merge_optimizer: FedOpt (ICLR 2021): the aggregate is not taken as it is, but its difference from the merged
            weights so far is the gradient of this optimizer's step, whose state outlives the rounds; null to take it.
        kwargs: options of `SplitModule`.
    """

    why_only_averaged: ClassVar[str] = ""
    why_not_together: ClassVar[str] = ""
    why_not_moved: ClassVar[str | None] = None
    why_not_compared: ClassVar[str] = ""

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        *,
        aggregator: Aggregator | None = None,
        merge_optimizer: OptimizerCallable | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        self.aggregator = aggregator or WeightedAverage()
        averaged = isinstance(self.aggregator, WeightedAverage) or not self.why_only_averaged
        given = type(self.aggregator).__name__
        require(averaged, "aggregator", given, f"none in {type(self).__name__}, as {self.why_only_averaged}")
        fits = not (self.aggregator.looks_back and self.why_not_compared)
        allowed = f"only without {self.aggregator.looks_back} in {type(self).__name__}, as {self.why_not_compared}"
        require(fits, "aggregator", given, allowed)
        why = self.why_only_averaged if self.why_not_moved is None else self.why_not_moved
        moved = merge_optimizer is None or not why
        require(moved, "merge_optimizer", "an optimizer", f"null in {type(self).__name__}, as {why}")
        self.merge_factory = merge_optimizer
        self.merge_optimizer: torch.optim.Optimizer | None = None

    @property
    def fewest_merged(self) -> int:
        """The smallest number of states that a round of this method merges."""
        return min(self.selection.fewest(self.participants), len(self.available))

    def prepare(self, data: Any, stage: str) -> None:
        """Cut the network, and see that enough clients take part for the aggregator."""
        super().prepare(data, stage)
        if stage == "fit":
            self.check_enough(self.fewest_merged)
            self.check_draws(type(self.aggregator).__name__)
            if self.aggregator.looks_back:
                self.aggregator.remembered = None
            self.aggregator.tell_rows([len(self.population.rows[client]) for client in self.available])
            self.build_merge_optimizer()

    def check_enough(self, count: int) -> None:
        """Refuse to merge fewer states than the aggregator needs."""
        name, least = type(self.aggregator).__name__, self.aggregator.least
        require(count >= least, "aggregator", name, f"with these options it needs {least} clients a round, not {count}")

    @property
    def why_uneven(self) -> str:
        """Why clients are not all equally likely to be merged, or their data have a say in it; empty where they are."""
        name = type(self.selection).__name__
        if self.selection.learns:
            return f"{name} goes by training losses"
        if self.selection.looks_at_data:
            return f"{name} goes by clients' rows"
        if self.attendance.common is None:
            return "attendance.availability is not the same for all clients"
        return "who is done in time goes by how many rows clients have" if self.attendance.hurries else ""

    def check_draws(self, rule: str) -> None:
        """Refuse a rule that reckons with even draws where there are none, or where clients count otherwise."""
        if self.aggregator.needs_even_draws:
            why = self.why_not_together or self.why_uneven
            why = why or ("attendance.trace lists who can be asked" if self.trace else "")
            require(not why, "aggregator", rule, f"with clients that are all equally likely to be merged; here {why}")
            own = self.weighting
            require(own == "samples", "aggregator", rule, f"with weighting samples; here it is {own}")

    def merged_halves(self) -> nn.ModuleList:
        """What clients' states are merged into: the client half, and the server half where clients have copies."""
        return nn.ModuleList([self.client_half, *([self.server_half] if self.server_copies else [])])

    def handed_in_by(self, slot: int) -> State:
        """Live state of what the client in this slot hands in, by the names of `merged_halves`."""
        return state_of(nn.ModuleList(self.halves_of(slot)))

    def brought_home(self, state: State) -> State:
        """These tensors, each on the device of the merged one of its name."""
        live = state_of(self.merged_halves())
        return {name: tensor.to(live[name].device) for name, tensor in state.items()}

    def put_together(self, states: Sequence[State], weights: Sequence[float], clients: Sequence[int]) -> None:
        """Write what the aggregator makes of these clients' states into the merged halves."""
        halves = self.merged_halves()
        merged = self.aggregated(states, state_of(halves), weights, clients)
        if self.merge_optimizer is None:
            load_state(halves, merged)
        else:
            self.step_towards(merged, halves)

    def aggregated(
        self, states: Sequence[State], anchor: State, weights: Sequence[float], clients: Sequence[int]
    ) -> State:
        """What the aggregator makes of these clients' states, which are near the anchor."""
        self.check_enough(len(states))
        if self.link.in_parts:
            return self.link.average(states, weights, anchor, buffers_of(self.merged_halves()), self.bn_buffers)
        return self.aggregator.merge(states, anchor, weights, buffers_of(self.merged_halves()), self.bn_buffers)

    # --- the merged update as a gradient ----------------------------------------------------------------------------

    def build_merge_optimizer(self) -> None:
        """A fresh optimizer of what is merged, if there is to be one."""
        factory, trained = self.merge_factory, [p for p in self.merged_halves().parameters() if p.requires_grad]
        self.merge_optimizer = factory and make_optimizer("merge_optimizer", factory, trained)

    @torch.no_grad()
    def step_towards(self, merged: State, halves: nn.ModuleList) -> None:
        """One step of the merge optimizer; buffers are taken as they were merged."""
        trained = {name: p for name, p in halves.named_parameters() if p.requires_grad}
        load_state(halves, {name: tensor for name, tensor in merged.items() if name not in trained})
        for name, parameter in trained.items():
            parameter.grad = parameter - merged[name]
        self.merge_optimizer.step()
        self.forget_gradients(trained.values())

    def data_identity(self) -> dict[str, Any]:
        name = None if self.merge_optimizer is None else type(self.merge_optimizer).__name__
        return super().data_identity() | {"merge_optimizer": name}

    def memory(self) -> dict[str, Any]:
        rule = self.aggregator
        kept = {"aggregator": {type(rule).__name__: rule.remembered}} if rule.looks_back else {}
        if self.merge_optimizer is not None:
            kept["merge_optimizer"] = self.merge_optimizer.state_dict()["state"]
        return {**super().memory(), **kept}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        if self.aggregator.looks_back:  # another rule begins anew
            self.aggregator.remembered = memory.get("aggregator", {}).get(type(self.aggregator).__name__)
        if self.merge_optimizer is not None:
            settings = self.merge_optimizer.state_dict()["param_groups"]  # of this run
            self.merge_optimizer.load_state_dict({"state": memory["merge_optimizer"], "param_groups": settings})
