"""Mix2SFL: a joint server step that also learns from mixed smashed data, and clients that share one mixed gradient.

S. Oh et al., "Mix2SFL: Two-Way Mixup for Scalable, Accurate, and Communication-Efficient Split Federated Learning",
IEEE Trans. Big Data 10(3), 2024. SmashMix comes from LocFedMix-SL, GradMix from SGLR (arXiv 2112.05929).

    for each epoch and each of T sweeps:  every client i that still has a batch uploads it
        server: gradient of the mean loss over all S rows; client slices G_i are taken now
                SmashMix adds, for each client and some others j, the gradient of the loss of l h_i + (1 - l) h_j
                one step with the sum
        GradMix: members of a drawn set all get the sum, or mean, of their slices; the others get G_i
    client half <- average weighted by rows;  server half: as trained
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from lightning_sfl.core.aggregation import Weighting
from lightning_sfl.core.cut import Reply, Upload, raw_of
from lightning_sfl.core.mixing import GradMix, SmashMix, gradmix, gradmix_members, mixed
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.rounds import Plan, draw_pass, in_order, plan_sweeps
from lightning_sfl.core.server_groups import Labels
from lightning_sfl.core.state import untouched_buffers
from lightning_sfl.methods.base import SplitMethod


class Mix2SFL(SplitMethod):
    """Two-way mixup: SmashMix for the server, GradMix for the clients.

    An epoch has T = max(1, floor(rows of the largest client / batch_size)) sweeps. Who has fewer batches sits the rest
    out; who has a short one more leaves it out.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        smashmix: mixed smashed data on which the server half is trained besides.
        gradmix: the cut gradient that drawn clients have in common.
        weighting: a client's weight in the merge: its number of rows trained on, of samples, or uniform.
        kwargs: options of `SplitMethod`; `local_steps` counts sweeps.
    """

    name = "mix2sfl"

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        *,
        smashmix: SmashMix = SmashMix(),
        gradmix: GradMix = GradMix(),
        weighting: Weighting = "rows",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, cut_layer, weighting=weighting, **kwargs)
        self.smashmix, self.gradmix = smashmix.checked(), gradmix.checked()

    def plan(self, index: int) -> Plan:
        clients = self.participants_of(index)
        sizes = {client: len(self.population.rows[client]) for client in clients}
        batch = self.work.batch_size or max(sizes.values())
        length = max(1, max(sizes.values()) // batch)
        steps = self.work.local_steps
        sweeps = []
        for epoch in range(self.work.local_epochs if steps is None else -(-steps // length)):
            passes = {c: draw_pass(self.seed, index, c, epoch, self.population.rows[c], batch) for c in clients}
            sweeps += [{c: passes[c][t] for c in clients if t < len(passes[c])} for t in range(length)]
        return plan_sweeps(index, in_order(clients, self.client_order, self.seed, index), sweeps[:steps])

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        answers = self.backward_server([uploads])
        turn, mixes = self.server_turn(uploads), self.learn_from_mixes(uploads)
        rows = sum(len(labels) for labels, _ in mixes) // 2  # of both in a pair
        self.step_server([turn._replace(labels=turn.labels + mixes, synthetic=rows)], raw_of(answers))
        slices = gradmix([each.raw for each in answers], self.members(uploads), self.gradmix.reduce)
        return [replace(each, sent=parts) for each, parts in zip(answers, slices, strict=True)]

    def learn_from_mixes(self, uploads: Sequence[Upload]) -> Labels:
        """SmashMix: add gradients of mixed losses to those of the server half; nothing of it reaches a client."""
        labels: Labels = ()
        pairs = self.smashmix.draw([upload.num_rows for upload in uploads], self.draws("smashmix", uploads))
        for i, j, share in pairs:
            one, other = uploads[i], uploads[j]
            with nullcontext() if self.smashmix.update_bn else untouched_buffers(self.server_half):
                logits = self.server_half(mixed(one.received, other.received, share))
                met = ((one.labels[: len(logits)], share), (other.labels[: len(logits)], 1 - share))
                own, foreign = (self.loss(logits, each) for each, _ in met)
                loss = share * own + (1 - share) * foreign
                self.walk_back([self.smashmix.weight(len(pairs)) * loss])
                labels += met
        return labels

    def members(self, uploads: Sequence[Upload]) -> list[int]:
        """Places of GradMix's set among the uploads."""
        if self.gradmix.members == "each_step":
            return gradmix_members(len(uploads), self.gradmix.phi, self.draws("gradmix", uploads))
        clients = self.feed.plan.participants
        drawn = gradmix_members(len(clients), self.gradmix.phi, stream(self.seed, "gradmix", self.current_epoch))
        places = {upload.client_id: place for place, upload in enumerate(uploads)}
        return [places[clients[k]] for k in drawn if clients[k] in places]

    def draws(self, purpose: str, uploads: Sequence[Upload]) -> np.random.Generator:
        first = uploads[0]
        return stream(self.seed, purpose, self.current_epoch, first.client_id, first.local_step)
