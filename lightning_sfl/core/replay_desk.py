"""Where replay is arranged: what each branch has met, how much it may ask for, and who gives it what (MultiSFL)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sfl.core.cut import Boundary, Upload, state_bytes
from lightning_sfl.core.errors import require
from lightning_sfl.core.evaluation import evaluated
from lightning_sfl.core.population import Population
from lightning_sfl.core.proportion_schedule import ProportionSchedule
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.replay import Found, Replay, budget, collect, order_of_asking, request, spread
from lightning_sfl.core.rounds import Batch, Plan, Work
from lightning_sfl.core.score_vector import ScoreVectors, label_distribution
from lightning_sfl.core.server_groups import ServerTurn
from lightning_sfl.core.state import squared_gradient_norm


class ReplayDesk:
    """Score vectors and the proportion go from round to round; all else is of one round.

    Branches must ask in ascending order in the first step, for each sees what those before it have met.
    """

    population: Population
    boundary: Boundary
    plan: Plan

    def __init__(self, replay: Replay, work: Work, seed: int) -> None:
        self.replay, self.work, self.seed = replay, work, seed
        bounds = (replay.least, replay.most)
        self.proportions = ProportionSchedule(replay.rule, replay.proportion, bounds, replay.largest_change)
        self.scores = ScoreVectors(np.zeros((0, 0)), np.zeros(0))
        self.found: dict[int, Found] = {}
        self.waiting: dict[int, list[list[Upload]]] = {}
        self.squares: dict[int, list[Tensor]] = defaultdict(list)
        self.counts: Counter[str] = Counter()
        self.told: dict[str, float] = {}

    def open(self, population: Population, boundary: Boundary, num_branches: int, num_classes: int) -> None:
        """Training is about to start, or to go on."""
        plain = population.y.ndim == 1 or self.replay.assistants == 0
        require(plain, "replay.assistants", self.replay.assistants, "0 where every row has several labels")
        self.population, self.boundary = population, boundary
        if not len(self.scores.masses):
            self.scores = ScoreVectors(np.zeros((num_branches, num_classes)), np.zeros(num_branches))

    def start_round(self, plan: Plan) -> None:
        """Forget the round before."""
        self.plan = plan
        self.found.clear()
        self.waiting.clear()
        self.squares.clear()
        self.counts.clear()

    def ask(self, turns: Sequence[Batch]) -> None:
        """At the first turn of a branch, find out which rows of other clients it is to learn from."""
        for turn in turns if self.replay.assistants != 0 else ():
            if turn.local_step == 0:
                self.found[turn.slot] = self._ask_for_rows(turn)

    def replayed(self, upload: Upload, client_half: nn.Module) -> list[Upload]:
        """What the server half learns from in this step besides the upload: features of other clients' rows."""
        if self.replay.assistants == 0:
            return []
        own = len(self.population.rows[upload.client_id])
        per_pass = self.work.steps(own) if self.work.local_steps is not None else self.work.steps_per_pass(own)
        spreads = self.replay.placement == "spread"
        if upload.local_step % per_pass == 0 if spreads else upload.local_step == 0:
            dealt = spread(self.found[upload.slot], per_pass if spreads else 1)
            self.waiting[upload.slot] = [self._borrowed(upload, client_half, part) for part in dealt]
        waiting = self.waiting[upload.slot]
        return waiting.pop(0) if waiting else []

    def _ask_for_rows(self, turn: Batch) -> Found:
        replay, population = self.replay, self.population
        own = population.rows[turn.client_id]
        met = population.labels_of(own if replay.labels == "client" else turn.rows)
        self.scores.observe(
            turn.slot, label_distribution(met, self.scores.num_classes, replay.normalised), replay.decay
        )
        base = len(own) if replay.base == "client" else turn.num_rows
        wanted = request(self.scores.deficit(turn.slot), budget(base, self.proportions.proportion, replay.minimum))
        busy = {turn.client_id} if replay.pool == "all_but_own" else {*self.plan.participants}
        pool = [client for client, size in enumerate(population.sizes) if size and client not in busy]
        draws = stream(self.seed, "replay", self.plan.index, turn.slot)
        asked = order_of_asking(replay, pool, draws)
        found = collect(wanted, asked, population, replay.rows_per_assistant, draws)
        self.counts["requested"] += int(wanted.sum())
        self.counts["collected"] += sum(len(rows) for _, rows in found)
        return found

    def _borrowed(self, upload: Upload, client_half: nn.Module, found: Found) -> list[Upload]:
        """Assistants run the branch's client half, as it now is, on rows of theirs; nothing comes back to them."""
        uploads = []
        for client, rows in found:
            self.boundary.count("weights", "down", state_bytes(client_half))
            x, labels = self.population.take(rows)
            features = evaluated(client_half, x)
            uploads.append(self.boundary.upload(upload.slot, client, upload.local_step, features, labels))
        return uploads

    def note_steps(self, stepped: Sequence[ServerTurn]) -> None:
        """The server halves of these branches have taken a step with the gradient that they have."""
        for turn in stepped:
            self.squares[turn.branch].append(squared_gradient_norm(turn.half))

    def mean_square(self) -> float:
        """Mean over the branches of their mean squared gradient norm in this round; 0 where no server half trains."""
        means = [torch.stack(squares).mean() for squares in self.squares.values()]
        return torch.stack(means).mean().item() if means else 0.0

    def end_round(self, norm: float) -> None:
        """The round is over: say what was done; the next proportion follows the norm of the servers' moves."""
        self.told = {
            "replay/proportion": self.proportions.proportion,
            "replay/fgn": -norm,
            "replay/rows_requested": float(self.counts["requested"]),
            "replay/rows_collected": float(self.counts["collected"]),
        }
        self.proportions.update(norm)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"scores": self.scores.state(), "proportions": self.proportions.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.scores = ScoreVectors.of(state["scores"])
        self.proportions.load(state["proportions"])
