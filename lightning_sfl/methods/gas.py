"""GAS: asynchronous clients on a simulated clock, and a server that balances its buffer with generated activations.

J. Yang, Y. Liu, "GAS: Generative Activation-Aided Asynchronous Split Federated Learning", AAAI 2025; equations 8-12.

    the client that is ready first:  uploads a batch; gets the gradient of its own prior-adjusted loss; takes a step
    activation buffer full:          update each label's statistics; one server step on the balanced buffer
    client done:                     hands in its half; another client takes its slot, from the global client half
    model buffer full:               client half <- mean of the halves handed in; the round is over
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sfl.core.activation_buffer import GENERATION, ActivationBuffer, Generation
from lightning_sfl.core.cut import Reply, Upload, cloned, join, parts
from lightning_sfl.core.errors import require
from lightning_sfl.core.logit_prior import logit_prior
from lightning_sfl.core.progress_weight import PROGRESS, ProgressCount, ProgressWeight
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.rounds import Batch, Plan
from lightning_sfl.core.server_groups import ServerTurn
from lightning_sfl.core.state import untouched_buffers
from lightning_sfl.methods.asynchronous import AsynchronousMethod


class GAS(AsynchronousMethod):
    """A round is one merge of client halves; clients, buffer, statistics and the clock go on from round to round.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        activation_buffer: uploads per server step, null for as many as there are slots.
        generation: how the server makes up activations.
        progress_weight: how much activations count in the statistics, by when they were made.
        prior_exponent: the client's loss is adjusted by its label shares to this power; 0 for no adjustment.
        local_server_buffers: the clients' losses leave the server's batch-norm statistics alone, or train them too.
        persist_server_optimizer: keep momentum and moments of the server half from round to round.
        kwargs: options of `AsynchronousMethod`.
    """

    name = "gas"

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        *,
        activation_buffer: int | None = None,
        generation: Generation = GENERATION,
        progress_weight: ProgressWeight = PROGRESS,
        prior_exponent: float = 1.0,
        local_server_buffers: Literal["frozen", "trained"] = "frozen",
        persist_server_optimizer: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, cut_layer, persist_server_optimizer=persist_server_optimizer, **kwargs)
        sized = activation_buffer is None or activation_buffer >= 1
        require(sized, "activation_buffer", activation_buffer, "an integer >= 1, or null")
        require(0 <= prior_exponent < float("inf"), "prior_exponent", prior_exponent, "a finite number >= 0")
        self.activation_buffer, self.generation, self.progress_weight = activation_buffer, generation, progress_weight
        self.prior_exponent, self.local_server_buffers = prior_exponent, local_server_buffers
        self.progress = ProgressCount(progress_weight.shape)
        self.buffer: ActivationBuffer | None = None

    def local_step(self, batches: Sequence[Batch]) -> None:
        super().local_step(batches)
        if self.buffer.full and self.groups is None:
            self.train_on_buffer()

    def step_groups(self, branches: Sequence[int]) -> None:
        self.train_on_buffer()  # it holds what came since the last server step

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        """Keep the upload, and answer it at once: the gradient of the client's own loss, the server half as it is."""
        (upload,) = uploads
        visit = self.visits.in_slot[upload.slot]
        self.buffer.add(upload, self.progress_weight.of(visit.count))
        visit.count += 1
        received = join(uploads)
        self.draw_from("server", upload)
        with untouched_buffers(self.server_half) if self.local_server_buffers == "frozen" else nullcontext():
            logits = self.server_half(cloned(received))
            if self.prior_exponent:
                logits = logits + self.prior_of(upload.client_id).to(logits)
            loss = self.observed_loss(logits, upload.labels, [upload.client_id], "client")
            *gradients, at_logits = torch.autograd.grad(loss, [*parts(received), logits], materialize_grads=True)
        return [Reply(upload, tuple(gradients), tuple(gradients), logits.detach(), at_logits)]

    def prior_of(self, client: int) -> Tensor:
        """Adjustment of this client's logits."""
        own = self.population.labels_of(self.population.rows[client])
        return logit_prior(own.ravel(), self.data.num_classes, self.prior_exponent)

    def train_on_buffer(self) -> None:
        """One server step on the buffer, balanced."""
        self.progress.server_steps += 1
        step, uploads = self.progress.server_steps, self.buffer.uploads
        target = self.work.batch_size or max(upload.num_rows for upload in uploads)
        received, labels = self.buffer.joint_batch(target, step, stream(self.seed, "generation", step=step))
        self.draw_from("server", uploads[0])
        loss = self.loss(self.server_half(cloned(received)), labels)
        clients = tuple(upload.client_id for upload in uploads)
        self.stop_unless(bool(loss.isfinite()), "the loss on the buffer", clients, "server")
        self.forget_gradients(self.stepped["server"])
        self.walk_back([loss])
        seen, made = ((labels, 1.0),), self.buffer.generated
        self.move_server([ServerTurn(0, clients, len(labels), self.server_half, seen, made)])
        self.buffer.clear()

    def newcomer_count(self) -> int:
        return self.progress.newcomer()

    def departures(self) -> dict[str, str]:
        adjusted = "clients learn from a prior-adjusted loss, the server from generated activations"
        plain = not self.prior_exponent and not self.generation.every
        return {} if plain else dict.fromkeys(("one_step", "denominator"), adjusted)

    def merge(self, plan: Plan) -> None:
        super().merge(plan)
        self.progress.aggregated()

    # --- what lasts -------------------------------------------------------------------------------------------------

    def prepare(self, data: Any, stage: str) -> None:
        super().prepare(data, stage)
        if stage == "fit" and self.buffer is None:
            size = self.activation_buffer or self.num_active
            self.buffer = ActivationBuffer(size, data.num_classes, self.generation)

    def memory(self) -> dict[str, Any]:
        if self.buffer is None:
            return super().memory()
        return {**super().memory(), "buffer": self.buffer.state(), "progress": vars(self.progress)}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        self.buffer.load(memory["buffer"], self.server_device)
        vars(self.progress).update(memory["progress"])
