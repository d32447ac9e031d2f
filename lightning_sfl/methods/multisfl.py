"""MultiSFL: persistent branches of the whole network, drawn together by a master, that replay the classes they lack.

"KoReA-SFL: Knowledge Replay-based Split Federated Learning Against Catastrophic Forgetting", arXiv 2404.12846 (2024).

    deal the participants to the branches, at random
    each branch, with its own halves:  all its client's batches through the cut; the server half also learns from
        features of other clients' rows, of classes that this branch has met less than the branches on average
    master <- plain mean of the branches; it is the network that is judged
    branch <- (branch + pull * master) / (1 + pull);  replayed proportion <- by the server's gradient norm
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sfl.core.branches import pull_all
from lightning_sfl.core.cut import Reply, Smashed, Upload, by_slot, cut_up, rows_of
from lightning_sfl.core.errors import require
from lightning_sfl.core.evaluation import evaluated
from lightning_sfl.core.replay import BY_DEFAULT, Replay
from lightning_sfl.core.replay_desk import ReplayDesk
from lightning_sfl.core.rounds import Batch, ClientOrder, Plan
from lightning_sfl.core.server_groups import ServerTurn
from lightning_sfl.core.state import load_state, state_of
from lightning_sfl.methods.base import SplitMethod


class MultiSFL(SplitMethod):
    """Branches outlive the rounds; a pass over a client's rows leaves out those that do not fill a batch.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        branches: how many, null for one per participant; if there are more, participants visit several.
        pull: how strongly the master draws each branch after a round; 0 leaves the branches alone.
        replay: how much is replayed, of what, from whom and when.
        client_forward: send what the client's forward gives, or what one in evaluation mode gives before it.
        server_forward: own and replayed rows as one batch, or apart; only batch normalisation can tell.
        client_order: which branch meets which client: as drawn (at random), by id, or shuffled.
        persist_client_optimizer: keep momentum and moments of the branches' client halves from round to round.
        persist_server_optimizer: keep those of the branches' server halves.
        kwargs: options of `SplitMethod` but for `weighting`, as branches count alike.
    """

    name = "multisfl"
    why_not_local = why_not_hurried = why_not_moved = "branches outlive the rounds, and clients visit them"
    why_same_work = "replay is planned for rounds that are alike"
    why_unguarded = "branches go on from client to client as they are"
    server_copies = True

    def __init__(
        self, backbone: nn.Module, cut_layer: str, branches: int | None = None, pull: float = 0.1,
        replay: Replay = BY_DEFAULT,
        client_forward: Literal["single", "double_eval"] = "single",
        server_forward: Literal["joint", "separate"] = "joint",
        client_order: ClientOrder = "selected",
        persist_client_optimizer: bool = True, persist_server_optimizer: bool = True, **kwargs: Any,
    ) -> None:  # fmt: skip
        kwargs |= {"client_order": client_order, "persist_server_optimizer": persist_server_optimizer}
        super().__init__(backbone, cut_layer, weighting="uniform", **kwargs)
        require(branches is None or branches >= 1, "branches", branches, "an integer >= 1, or null")
        require(0 <= pull < float("inf"), "pull", pull, "a finite number >= 0")
        self.branches, self.pull, self.persist_client_optimizer = branches, pull, persist_client_optimizer
        self.client_forward, self.server_forward = client_forward, server_forward
        self.work = replace(self.work, drop_last=True)
        self.desk = ReplayDesk(replay, self.work, self.seed)

    def participants_of(self, index: int) -> list[int]:
        chosen = super().participants_of(index)
        return [chosen[branch % len(chosen)] for branch in range(self.num_branches) if chosen]

    def train_round(self, plan: Plan) -> None:
        self.desk.start_round(plan)
        super().train_round(plan)

    def load_slot(self, slot: int) -> None:
        if self.starts_merged:  # else a branch goes on from where it stands
            super().load_slot(slot)

    def sent_instead(self, batch: Batch, x: Tensor) -> Smashed | None:
        return evaluated(self.slots[batch.slot], x) if self.client_forward == "double_eval" else None

    def begin(self, batches: Sequence[Batch]) -> None:
        super().begin(batches)
        self.desk.ask(batches)

    def upload(self, batches: Sequence[Batch]) -> list[Upload]:
        return [each for up in super().upload(batches) for each in (up, *self.desk.replayed(up, self.slots[up.slot]))]

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        groups = by_slot(uploads)
        answers = {id(answer.upload): answer for answer in self.train_server(groups)}
        return [replace(answers[id(own)], replayed=rows_of(replayed)) for own, *replayed in groups]

    def server_logits(self, uploads: Sequence[Upload], received: Smashed) -> Tensor:
        if self.server_forward == "joint" or len(uploads) == 1:
            return super().server_logits(uploads, received)
        half, sizes = self.server_of(uploads[0].slot), [uploads[0].num_rows, rows_of(uploads[1:])]
        return torch.cat([half(part) for part in cut_up(received, sizes)])

    def move_server(self, stepped: Sequence[ServerTurn], cut_gradients: Sequence[Tensor] = ()) -> None:
        super().move_server(stepped, cut_gradients)
        self.desk.note_steps(stepped)

    def merge(self, plan: Plan) -> None:
        super().merge(plan)
        for branches, master in ((self.slots, self.client_half), (self.server_slots, self.server_half)):
            pull_all(branches[: self.num_branches], master, self.pull)
        self.desk.end_round(*self.link.from_server([self.learning_rates()["server"] * self.desk.mean_square()]))

    @property
    def num_slots(self) -> int:
        return self.branches or super().num_slots

    @property
    def num_branches(self) -> int:
        """Branches that train: without an explicit number, no more than clients that have data."""
        return self.branches or min(self.num_slots, len(self.available))

    fewest_merged = num_branches

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.desk.open(self.population, self.boundary, self.num_branches, self.data.num_classes)

    def data_identity(self) -> dict[str, Any]:
        return super().data_identity() | {"branches": self.num_branches if self.population else None}

    def lasting(self, role: Any) -> bool:
        return self.persist_client_optimizer if role == "client" else super().lasting(role)

    def scalars(self) -> dict[str, float]:
        return self.desk.told

    def memory(self) -> dict[str, Any]:
        pairs = list(zip(self.slots, self.server_slots, strict=True))[: self.num_branches if self.population else 0]
        return super().memory() | {"branches": [[*map(state_of, pair)] for pair in pairs], "desk": self.desk.state()}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        for slot, (client, server) in enumerate(memory["branches"]):
            load_state(self.slots[slot], client)
            load_state(self.server_slots[slot], server)
        self.desk.load(memory["desk"])
