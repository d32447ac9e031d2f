"""What selections learn: what a client's round takes, and which losses its rows had."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sfl.core.clock import ALEXNET, CELL, Cell, Costs, costs_of, durations
from lightning_sfl.core.errors import require
from lightning_sfl.core.reports import LossLedger, mean_of
from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.selection import Uniform
from lightning_sfl.methods.row_wise import RowWise


class Informed(RowWise):
    """Keeps the books for a selection that learns, and only for one.

    chooses: whether the method has participants to choose.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        cell: how fast clients compute and send, for those who look at time, such as selection Oort.
        kwargs: options of `SplitModule`.
    """

    chooses: ClassVar[bool] = True
    whole_on_client: ClassVar[bool] = False

    def __init__(self, backbone: nn.Module, cut_layer: str, *, cell: Cell = CELL, **kwargs: Any) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        self.cell, self.losses_met = cell, LossLedger()
        name, owner = type(self.selection).__name__, type(self).__name__
        chosen = self.chooses or isinstance(self.selection, Uniform)
        require(chosen, "selection", name, f"none in {owner}, where there are no clients to choose")
        fits = cell.constants == "auto" or not self.whole_on_client
        require(fits, "cell.constants", cell.constants, f"auto in {owner}: the paper's are those of a cut network")

    def prepare(self, data: Any, stage: str) -> None:
        """Cut the network, and tell the selection what each client's round takes."""
        super().prepare(data, stage)
        if stage == "fit" and self.looks_at_time:
            self.work_costs = self.costs(data.example()[:1])  # before training, so that a refusal comes first
        if stage == "fit" and self.selection.learns:
            steps = [self.work.steps(size) if size else 0 for size in self.population.sizes]
            full = [n * self.work.rows_per_step(size) for size, n in zip(self.population.sizes, steps, strict=True)]
            rows = [min(pair) for pair in zip(self.population.sizes, full, strict=True)]
            self.selection.tell_work(rows, [self.seconds(client, n) for client, n in enumerate(steps)])

    @property
    def looks_at_time(self) -> bool:
        """Whether it has to be known what a row costs."""
        return self.selection.learns

    @cached_property
    def work_costs(self) -> Costs:
        """What a row of these data costs."""
        return self.costs(self.data.example()[:1].to(self.device))

    def costs(self, row: Tensor) -> Costs:
        """What a row costs a client: its half and what leaves it, or the whole network and nothing."""
        if self.cell.constants == "alexnet":
            return ALEXNET
        if not self.whole_on_client:
            return costs_of(self.client_half, row)
        whole = costs_of(nn.Sequential(self.client_half, self.server_half), row)
        return Costs(whole.flops, 0.0, whole.model_bits)

    def seconds(self, client: int, num_steps: int) -> float:
        """Simulated time of so many full batches of a client, there and back, and of sending what it has trained."""
        rows = self.work.rows_per_step(self.population.sizes[client])
        takes = durations(self.cell, self.work_costs, self.seed, client, rows, self.num_slots)
        return num_steps * (2 * takes.process_s + takes.send_batch_s) + takes.send_model_s

    @torch.no_grad()
    def note_losses(self, logits: Tensor, labels: Tensor, clients: Sequence[int], sizes: Sequence[int]) -> None:
        """Enter the loss of every row; sizes[i] rows are of clients[i]."""
        losses = cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        self.losses_met.add(clients, sizes, losses.view(len(labels), -1).mean(dim=1))

    def inform_selection(self, plan: Plan) -> None:
        """Hand over what the round has shown; who is late is taken to be like the others, as Oort's code has it."""
        self.selection.observe(plan)
        if self.selection.learns:
            done = [plan.participants[slot] for slot in plan.finishers]
            late = [*(plan.participants[slot] for slot in plan.late), *plan.dropped]
            reports = self.losses_met.reports(done)
            if late:
                reports |= dict.fromkeys(late, mean_of([*reports.values()]))
            self.selection.learn(plan.index, reports)
            self.losses_met = LossLedger()
