"""HoloGrad: every client sends a few scalars instead of its gradient; who knows the seeds rebuilds an estimate of it.

The paper in github.com/devsigner9920/holograd, where its rules do what they say: coordinates in a basis come with
directions outside it, and trimming goes across clients, not across directions (docs/holograd.md).

    v_1 .. v_K <- unit vectors outside the basis Q, seeds SHA-256(S0, parameters, rows, [Q], t, j)
    each client k:  b_k <- Q g_k;  a_kj <- <g_k, v_j>, g_k the gradient of its mean loss at w
    b, a <- aggregate over the clients, one direction at a time
    g <- Q'b + s (d / K) sum_j a_j v_j;  w <- one server step with g;  Q learns from g
    every replica gets b and a, and takes the same step
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_sfl.core.aggregation import normalised, weighted_average
from lightning_sfl.core.byzantine import Byzantine
from lightning_sfl.core.cut import num_bytes
from lightning_sfl.core.errors import require
from lightning_sfl.core.holograd.basis import NO_BASIS, Basis, BasisChoice
from lightning_sfl.core.holograd.commitment import base_of, basis_seeds, hash_batch
from lightning_sfl.core.holograd.coordinator import Coordinator, Recipe, Topology
from lightning_sfl.core.holograd.directions import DirectionKind, without_autocast
from lightning_sfl.core.holograd.projection import Projection, flat, unflat
from lightning_sfl.core.holograd.robust import MEAN, Robust
from lightning_sfl.core.holograd.synthesis import Message, Scale, synthesize, upload_bytes
from lightning_sfl.core.rounds import Batch, Plan
from lightning_sfl.core.state import buffers_of, load_state
from lightning_sfl.core.stragglers import ALL, Stragglers
from lightning_sfl.core.sync_ledger import Synchronisation, SyncLedger
from lightning_sfl.methods.projecting import ProjectingMethod


class HoloGrad(ProjectingMethod):
    """One server step per round with an estimate of FedSGD's gradient; the server optimizer moves both halves.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        num_scalars: numbers in a client's upload, those of the basis included.
        directions: random, or orthogonal, which takes the memory of all of them.
        scale: of the estimate: unbiased, least squared error, or about the gradient's norm; the rate goes with it.
        projection: from the gradient (exact and fastest), by forward mode (stores no activations), or by differences.
        topology: all clients share their directions, or each has its own, which allows no robust rule.
        robust: how the clients' scalars along one direction become one.
        basis: what the estimate holds exactly: nothing, the momentum, or a learned subspace.
        synchronisation: clients catch up by replaying the messages they missed, or get the whole state every round.
        byzantine: clients that lie; null for none.
        stragglers: whose uploads are waited for, on a simulated clock.
        kwargs: options of `SplitMethod` but for those of local training, of which there is none; `server_clip`
            bounds the estimate for the whole network.
    """

    name = "holograd"

    def __init__(
        self, backbone: nn.Module, cut_layer: str, *, num_scalars: int = 64, directions: DirectionKind = "random",
        scale: Scale = "unbiased", projection: Projection = "grad", topology: Topology = "shared",
        robust: Robust = MEAN, basis: BasisChoice = NO_BASIS, synchronisation: Synchronisation = "replay",
        byzantine: Byzantine | None = None, stragglers: Stragglers = ALL, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, cut_layer, projection, byzantine, **kwargs)
        self.recipe = Recipe(num_scalars, directions, scale, topology, robust, basis)
        alone = topology == "shared" or byzantine is None or byzantine.attack != "inner_product"
        require(
            alone, "byzantine.attack", "inner_product", "without topology=partitioned, where no direction is common"
        )
        self.stragglers = stragglers
        self.ledger = SyncLedger(synchronisation)
        self.coordinator: Coordinator | None = None
        self.message: Message | None = None

    def local_step(self, batches: Sequence[Batch]) -> None:
        shared = self.recipe.topology == "shared"
        rows = [batch.rows for batch in sorted(batches, key=lambda batch: batch.client_id if shared else batch.slot)]
        committed = [np.concatenate(rows)] if shared else rows
        self.coordinator.open(self.current_epoch, [hash_batch(each, self.seed) for each in committed])
        self.check_in_step(self.coordinator.sets[0])
        self.received = self.receive_scalars(batches, self.coordinator.sets * (len(batches) if shared else 1))

    @without_autocast
    def merge(self, plan: Plan) -> None:
        weights = normalised(self.weights(plan))
        arrived, self.waited_s = self.stragglers.arrived(self.seed, plan.index, plan.participants)
        self.message = self.coordinator.conclude(self.received, weights, arrived)
        sets = self.coordinator.sets_arrived(arrived)
        estimate = synthesize(self.message.coordinates, self.message.coefficients, sets)
        parameters = [parameter for _, parameter in self.named_parameters_whole()]
        for parameter, piece in zip(parameters, unflat(estimate, parameters), strict=True):
            parameter.grad = piece.clone()
        self.merge_buffers(arrived, weights)
        first = [batches[0] for batches in plan.batches]
        self.step_server([self.server_turn([first[i] for i in arrived])._replace(half=self.server_half)])
        self.coordinator.basis.learn(estimate)
        self.tell(plan.participants, self.message)

    def merge_buffers(self, arrived: Sequence[int], weights: Sequence[float]) -> None:
        """Buffers have no gradient and are averaged over those who arrived."""
        for copies, half in ((self.slots, self.client_half), (self.server_slots, self.server_half)):
            buffers = [buffers_of(copies[slot]) for slot in arrived]
            load_state(half, weighted_average(buffers, [weights[i] for i in arrived], buffers[0], self.bn_buffers))

    def tell(self, participants: tuple[int, ...], message: Message) -> None:
        """Every participant gets the message, and is in step again."""
        held = sum(map(self.link.holds, range(len(participants))))  # each process counts for its own clients
        self.boundary.count("scalars", "down", message.num_bytes * held)
        self.ledger.close(participants, message.num_bytes)

    def scalars(self) -> dict[str, float]:
        """Bytes of the round without what keeps replicas in step, and with their state sent anew."""
        clients = len(self.feed.plan.participants)
        payload = clients * (upload_bytes(self.recipe.num_scalars) + self.message.num_bytes)
        synced = payload + clients * self.state_bytes()
        return {"comm/payload_bytes": payload, "comm/with_sync_bytes": synced, "comm/waited_s": self.waited_s}

    # --- what lasts -------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Directions are as long as the network is large, and lie where it does."""
        named = self.named_parameters_whole()
        like = flat([p for _, p in named], [p for _, p in named])
        self.recipe.check_size(len(like))
        base = base_of(self.seed, self.name)
        basis = Basis(self.recipe.basis, basis_seeds(base, self.recipe.basis.rank), like)
        self.coordinator = Coordinator(self.recipe, base, named, basis)
        super().on_fit_start()

    def state_bytes(self) -> int:
        """Weights, buffers, basis, and what the server's optimizer keeps."""
        kept = self.optimizer("server").optimizer.state.values() if self.lasting("server") else ()
        moments = [t for each in kept for t in each.values() if isinstance(t, Tensor)]
        return self.owned_bytes + num_bytes([*moments, *self.coordinator.basis.state().values()])

    def memory(self) -> dict[str, Any]:
        return (
            {} if self.coordinator is None else {"basis": self.coordinator.basis.state(), "ledger": self.ledger.state()}
        )

    def recall(self, memory: dict[str, Any]) -> None:
        self.coordinator.basis.load(memory["basis"])
        self.ledger.load(memory["ledger"])
