"""USFL: one joint server step per sweep, on batches that hold the classes evenly and exhaust all clients together.

Known from its reference implementation; no paper was found.

    a_il <- rows of class l that participant i uses, balanced over the participants
    plan <- k sweeps that divide each client's rows so that all joint batches have nearly the same size
    for each epoch and sweep:  every client i that has rows in it uploads b_i rows
                               server: one step on the mean loss over all S = sum b_i rows
                               client i gets its slice of the joint gradient (1/S), after rows were exchanged
    client half <- average weighted by rows;  server half: as trained
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import nn

from lightning_sfl.core.balancing import Balancing, label_capped_weights, label_counts
from lightning_sfl.core.batch_schedule import additional_passes, create_schedule, fixed_schedule
from lightning_sfl.core.cut import Reply, Upload, scaled
from lightning_sfl.core.errors import require
from lightning_sfl.core.gradient_shuffle import GradientShuffle, KeptShares
from lightning_sfl.core.optimizers import times_rate
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.rings import Rings
from lightning_sfl.core.rounds import Plan, draw_pass, in_order, plan_sweeps
from lightning_sfl.methods.base import SplitMethod


class USFL(SplitMethod):
    """Joint server steps on balanced batches, planned so that all clients are done at the same time.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        server_batch_size: rows of a joint batch; null for batch_size times the number of participants.
        batch_schedule: `dynamic` uses every row once an epoch, and clients may sit a sweep out; `fixed` gives each
            client one batch size, makes as many sweeps as all can fill, and leaves the rest of the rows out.
        additional_epochs: with `fixed`, more epochs for the rows that balancing took away.
        balancing: how many rows of each class are used.
        gradient_shuffle: what happens to the rows of the joint cut gradient before clients get their slices.
        scale_client_gradient: multiply cut gradients by the number of clients in the sweep (1/S becomes n/S).
        scale_server_lr: multiply the server's learning rate by `participants`.
        weighting: a client's weight in the merge: its number of rows trained on, of samples, uniform, or
            `label_capped`, the reference's formula, which amounts to `samples`.
        kwargs: options of `SplitMethod`; batch_size is the mean over clients, and local_steps counts sweeps.
    """

    name = "usfl"

    def __init__(
        self, backbone: nn.Module, cut_layer: str, *, server_batch_size: int | None = None,
        batch_schedule: Literal["dynamic", "fixed"] = "dynamic", additional_epochs: bool = False,
        balancing: Balancing = Balancing(), gradient_shuffle: GradientShuffle = GradientShuffle(),
        scale_client_gradient: bool = False, scale_server_lr: bool = False,
        weighting: Literal["rows", "samples", "uniform", "label_capped"] = "rows", **kwargs: Any,
    ) -> None:  # fmt: skip
        known = ("rows", "samples", "uniform", "label_capped")
        require(weighting in known, "weighting", weighting, f"one of {known}")
        own = weighting == "label_capped"
        super().__init__(backbone, cut_layer, weighting="samples" if own else weighting, **kwargs)
        self.label_capped, self.additional_epochs = own, additional_epochs
        sized = server_batch_size is None or server_batch_size >= 1
        require(sized, "server_batch_size", server_batch_size, "an integer >= 1, or null")
        require(batch_schedule in ("dynamic", "fixed"), "batch_schedule", batch_schedule, "dynamic or fixed")
        self.server_batch_size, self.batch_schedule = server_batch_size, batch_schedule
        self.balancing, self.gradient_shuffle = balancing.checked(), gradient_shuffle.checked()
        self.whole_loss = "gradient_shuffle moves rows" if self.gradient_shuffle.strategy != "none" else ""
        self.scale_client_gradient = scale_client_gradient
        if scale_server_lr:
            optimizer, scheduler = self.factories["server"]
            self.factories["server"] = (times_rate(optimizer, self.participants), scheduler)
        self.rings, self.kept = Rings(), KeptShares()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            rows, labels, self.num_classes = self.population.rows, self.population.y.numpy(), self.data.num_classes
            if labels.ndim > 1 and not self.needs_classes:
                labels, self.num_classes = np.zeros(len(labels), np.int64), 1
            self.counts = label_counts(labels, rows, self.num_classes)
            self.rings.prepare(labels, rows, self.num_classes)

    @property
    def needs_classes(self) -> bool:
        return self.balancing.strategy != "none" or self.gradient_shuffle.strategy == "inplace" or self.label_capped

    @property
    def step_rows(self) -> int | None:
        return self.server_batch_size or super().step_rows

    def plan(self, index: int) -> Plan:
        chosen = self.participants_of(index)
        clients = sorted(chosen)
        amounts = self.balancing.amounts(self.counts[clients])
        schedule, epochs = self.schedule_of(amounts.sum(axis=1).tolist(), int(self.counts[clients].sum()))
        columns, sweeps = list(zip(*schedule, strict=True)), []
        self.rings.draft()
        for epoch in range(epochs):
            passes = {
                client: draw_pass(self.seed, index, client, epoch, self.rings.draw(client, amounts[i]), columns[i])
                for i, client in enumerate(clients)
            }
            sweeps += [{client: passes[client][sweep] for client in clients} for sweep in range(len(schedule))]
        ordered = in_order(chosen, self.client_order, self.seed, index)
        return plan_sweeps(index, ordered, sweeps[: self.work.local_steps])

    def schedule_of(self, sizes: list[int], held: int) -> tuple[list[list[int]], int]:
        """Rows of each client in each sweep of an epoch, and the number of epochs; `held`: rows before balancing."""
        total, epochs, steps = self.step_rows or sum(sizes), self.work.local_epochs, self.work.local_steps
        if self.batch_schedule == "dynamic":
            schedule = create_schedule(total, sizes)
        else:
            total = total * len(sizes) // self.num_expected
            schedule = fixed_schedule(total, sizes)
            epochs += additional_passes(held - sum(sizes), total, epochs, len(schedule)) * self.additional_epochs
        return schedule, epochs if steps is None else -(-steps // len(schedule))

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        answers = self.train_server([uploads])
        if self.scale_client_gradient:
            answers = [scaled(each, len(uploads)) for each in answers]
        if self.gradient_shuffle.strategy == "none":
            return answers
        rng = stream(self.seed, "shuffle", self.current_epoch, uploads[0].client_id, uploads[0].local_step)
        labels = [upload.labels for upload in uploads]
        slices = self.gradient_shuffle([each.sent for each in answers], labels, self.num_classes, rng, self.kept)
        return [replace(each, sent=parts) for each, parts in zip(answers, slices, strict=True)]

    def scalars(self) -> dict[str, float]:
        return self.kept.told()

    def merge(self, plan: Plan) -> None:
        super().merge(plan)
        self.rings.keep()

    def weights(self, plan: Plan) -> list[float]:
        if self.label_capped:
            return label_capped_weights(self.counts[list(plan.participants)])
        return super().weights(plan)
