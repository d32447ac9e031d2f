"""FedSGD: every client sends the gradient of its whole local loss, and the server takes one step with their average.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, section 2. With plain SGD it is FedAvg with one full-batch local step.

    each client k:  g_k <- gradient of its mean loss at w
    w <- one server step with sum_k (n_k / n) g_k
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.core.cut import num_bytes
from lightning_sfl.core.rounds import Batch, Plan
from lightning_sfl.core.state import State, buffers_of, gradients_of, load_state
from lightning_sfl.methods.base import SplitMethod
from lightning_sfl.methods.module import Role


class FedSGD(SplitMethod):
    """One averaged gradient step per round; the server optimizer moves both halves and may keep momentum.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        kwargs: options of `SplitMethod` but for those of local training, of which there is none; `server_clip`
            bounds the averaged gradient of the whole network.
    """

    name = "fedsgd"
    why_not_local = "clients send gradients and keep no weights"
    why_not_moved = "server_optimizer takes the step with the merged gradients"
    why_not_compared = "clients send gradients, and server_optimizer says where these lead"
    why_same_work = "there is no local training"
    server_copies = True
    whole_on_client = True
    whole_loss = "its one step needs the gradients of all clients"

    def __init__(self, backbone: nn.Module, cut_layer: str, **kwargs: Any) -> None:
        super().__init__(
            backbone, cut_layer, client_optimizer=None, client_scheduler=None, client_clip=None,
            batch_size=None, local_epochs=1, local_steps=None, **kwargs,
        )  # fmt: skip

    def trained(self) -> dict[Any, list[nn.Parameter]]:
        return {"server": [*self.client_half.parameters(), *self.server_half.parameters()]}

    def local_step(self, batches: Sequence[Batch]) -> None:
        self.backward_uncut(batches)

    def live(self, slot: int) -> list[Tensor | None]:
        """Gradients travel between processes as well, and buffers, which have none."""
        gradients = [gradient for module in self.owned(slot) for gradient in gradients_of(module).values()]
        return [*gradients, *(buffer for module in self.owned(slot) for buffer in buffers_of(module).values())]

    def bring(self, slots: Iterable[int]) -> None:
        """Make room for the gradients of slots that are held elsewhere, which have the same as those held here."""
        if not self.link.alone:
            self.make_room(slots)
        super().bring(slots)

    def send_weights(self, slot: int) -> None:
        """Gradients travel up, not weights; buffers, which have no gradient, as they are."""
        gradients = [gradient for module in self.owned(slot) for gradient in gradients_of(module).values()]
        buffers = [buffer for module in self.owned(slot) for buffer in buffers_of(module).values()]
        self.boundary.count("gradients", "up", self.sent_bytes(slot, num_bytes(gradients)))
        if buffers:
            self.boundary.count("weights", "up", num_bytes(buffers))

    def handed_in_by(self, slot: int) -> State:
        halves = nn.ModuleList(self.halves_of(slot))
        return {**gradients_of(halves), **buffers_of(halves)}

    def merge(self, plan: Plan) -> None:
        states, halves = [self.handed_in_by(slot) for slot in plan.finishers], self.merged_halves()
        weights, clients = self.weights(plan), [plan.participants[slot] for slot in plan.finishers]
        buffers = buffers_of(halves)
        nothing = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}
        weights = [weights[slot] for slot in plan.finishers]
        merged = self.aggregated(states, {**nothing, **buffers}, weights, clients)
        load_state(halves, {name: merged[name] for name in buffers})
        for name, parameter in halves.named_parameters():
            parameter.grad = merged.get(name)
        turns = [plan.batches[slot][0] for slot in plan.finishers]
        self.step_server([self.server_turn(turns)._replace(half=self.server_half)])

    def guard_step(self, owned: Any, clients: Sequence[int], side: Role, cut_gradients: Sequence[Tensor] = ()) -> None:
        """The one step moves both halves, so they are checked, and bounded by one norm, together."""
        super().guard_step([[self.client_half, self.server_half]], clients, side, cut_gradients)
