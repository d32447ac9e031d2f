"""ScaffoldSFL: SFL whose clients take out of each gradient what is their own, and put in what is all clients'.

S. P. Karimireddy, S. Kale, M. Mohri, S. Reddi, S. Stich, A. T. Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", ICML 2020, Algorithm 1, Option II, on the client half; the server half learns as in SFL.

    each participant i starts from theta_0, the client half; c and c_i are 0 at first
    for each sweep t:  every client i that has a t-th batch uploads it, the server takes a step for each in turn
                       client i:  gradient <- gradient - c_i + c;  theta_i <- theta_i - lr * gradient
    each participant i, after K_i steps:  c_i+ <- c_i - c + (theta_0 - theta_i) / (K_i lr), the mean of its gradients
    c <- c + 1/N sum of (c_i+ - c_i), N being all clients with data, unweighted;  c_i <- c_i+
    client half <- weighted average;  server half: as trained

The paper's merge has equal weights (`weighting: uniform`) and a global rate (`merge_optimizer`: SGD of that rate).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.core.clock import Costs
from lightning_sfl.core.control_variates import ControlVariates, scaffold_correct, scaffold_update
from lightning_sfl.core.cut import Reply, Upload, num_bytes
from lightning_sfl.core.gradients import trained_parameters
from lightning_sfl.core.optimizers import require_plain_sgd
from lightning_sfl.core.rounds import Plan
from lightning_sfl.methods.base import SplitMethod
from lightning_sfl.methods.module import Role


class ScaffoldSFL(SplitMethod):
    """Control variates of the trained parameters of the client half, kept by client from round to round.

    `client_optimizer` has to be plain SGD, since c_i+ is read off the way that a client has gone; a schedule may change
    its rate between rounds, and after rounds of rate 0 the c_i are as before. `client_clip` bounds gradients before
    they are corrected. An `aggregator` merges halves; c is the mean all the same. `sample_dp` needs no more noise here,
    as the c_i follow from weights alone; `privacy`, which hides updates only, is refused.
    """

    name = "scaffold_sfl"
    why_not_local = "control variates steer all layers of all clients towards one network"
    why_unguarded = "clients send what their control variates have changed by, too, and nothing hides that"

    def build_optimizer(self, role: Role, parameters: list[nn.Parameter]) -> Any:
        optimizer, schedule = super().build_optimizer(role, parameters)
        if role == "client":
            require_plain_sgd("client_optimizer", optimizer)
        return optimizer, schedule

    def on_fit_start(self) -> None:
        self.variates = ControlVariates(trained_parameters(self.client_half))
        super().on_fit_start()

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        return [reply for upload in uploads for reply in self.train_server([[upload]])]

    def guard_step(self, owned: Any, clients: Sequence[int], side: Role, cut_gradients: Sequence[Tensor] = ()) -> None:
        super().guard_step(owned, clients, side, cut_gradients)
        for (half,), client in zip(owned, clients, strict=True) if side == "client" else ():
            scaffold_correct(gradients_in(self.trained_in(half)), self.variates.of(client), self.variates.overall)

    def merge(self, plan: Plan) -> None:
        rate, start = self.learning_rates()["client"], self.trained_in(self.client_half)
        updated = {}
        for slot in plan.finishers:  # their halves are in every process now, and so are all variates
            client, path = plan.participants[slot], len(plan.batches[slot]) * rate
            end, own = self.trained_in(self.slots[slot]), self.variates.of(client)
            updated[client] = scaffold_update(own, self.variates.overall, start, end, path)
        self.variates.take(updated, len(self.available))
        super().merge(plan)

    def trained_in(self, half: nn.Module) -> list[nn.Parameter]:
        """What has control variates, in their order."""
        return [parameter for parameter in self.parameters_of[half] if parameter.requires_grad]

    # --- what is sent -----------------------------------------------------------------------------------------------

    @property
    def variate_bytes(self) -> int:
        """Bytes of c, and of what a c_i has changed by."""
        return num_bytes(trained_parameters(self.client_half))

    def receive_weights(self, slot: int) -> None:
        super().receive_weights(slot)
        self.boundary.count("control_variates", "down", self.variate_bytes)

    def send_weights(self, slot: int) -> None:
        super().send_weights(slot)
        self.boundary.count("control_variates", "up", self.variate_bytes)

    def costs(self, row: Tensor) -> Costs:
        found = super().costs(row)
        measured = self.cell.constants == "auto"
        return replace(found, model_bits=found.model_bits + 8 * self.variate_bytes) if measured else found

    # --- what outlives a round --------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Any]:
        return {**super().memory(), "control_variates": self.variates.state()}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        self.variates.load(memory["control_variates"], self.device)


def gradients_in(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Their gradients, 0 where a step has none: it is corrected all the same."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
