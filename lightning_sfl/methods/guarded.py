"""What stands between the clients and those who see what they send: their updates, and their smashed data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_sfl.core.aggregators import WeightedAverage
from lightning_sfl.core.attendance import EVERYBODY
from lightning_sfl.core.cut import num_bytes
from lightning_sfl.core.effort import Effort
from lightning_sfl.core.errors import require
from lightning_sfl.core.privacy.base import Moment, Privacy, Setting
from lightning_sfl.core.privacy.smashed import SmashedNoise
from lightning_sfl.core.selection import Uniform
from lightning_sfl.core.staleness import Constant
from lightning_sfl.core.state import State, buffers_of
from lightning_sfl.methods.merging import Merging


class Guarded(Merging):
    """Hands every update to `privacy` before it is merged.

    why_unguarded: what to answer where that has no meaning although states are merged.

    Args:
        backbone: the whole network; it is cut after `cut_layer`.
        cut_layer: dotted name of the last stage of the client half.
        privacy: what is done to updates before they are merged, see docs/privacy.md; null for nothing.
        smashed_noise: std of Gaussian noise on every number of the smashed data, before they leave the client.
        kwargs: options of `SplitModule`.
    """

    why_unguarded: ClassVar[str] = ""

    def __init__(
        self,
        backbone: nn.Module,
        cut_layer: str,
        *,
        privacy: Privacy | None = None,
        smashed_noise: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        self.privacy, self.veil = privacy, SmashedNoise(smashed_noise, self.seed) if smashed_noise else None
        crosses = smashed_noise == 0 or self.answers_uploads
        require(crosses, "smashed_noise", smashed_noise, f"0 in {type(self).__name__}, where no smashed data are sent")
        if privacy is not None:
            self.check_privacy(privacy, type(privacy).__name__)

    def check_privacy(self, privacy: Privacy, name: str) -> None:
        """Refuse what has no meaning for this method and its options."""
        why = self.why_only_averaged or self.why_unguarded or (self.why_not_together if privacy.together else "")
        require(not why, "privacy", name, f"null in {type(self).__name__}, as {why}")
        rule = type(self.aggregator).__name__
        averaged = isinstance(self.aggregator, WeightedAverage) or not privacy.forms_mean
        require(averaged, "aggregator", rule, f"WeightedAverage with privacy {name}, which forms the mean itself")
        alike = self.weighting == "uniform" or not privacy.uniform
        require(alike, "weighting", self.weighting, f"uniform with privacy {name}, as {privacy.uniform}")

    def prepare(self, data: Any, stage: str) -> None:
        """Cut the network, and see what there is to hide."""
        super().prepare(data, stage)
        if self.privacy is not None and stage == "fit":
            self.check_what_goes_with(self.privacy, type(self.privacy).__name__)
            alike = self.weighting == "uniform"
            most = min(self.selection.most(self.num_expected), len(self.available))
            self.privacy.prepare(Setting(most, self.asked_share, self.why_unaccounted, alike))

    def check_what_goes_with(self, privacy: Privacy, name: str) -> None:
        """Refuse a network and options that would defeat it."""
        floating = [name for name, b in buffers_of(self.merged_halves()).items() if b.is_floating_point()]
        where = floating[0].partition(".")[2] if floating else ""
        why = f"null with buffers such as {where}, which would {privacy.unguarded}; take norm: group"
        require(not (floating and privacy.unguarded), "privacy", name, why)
        for key in ("overcommit", "deadline_s") if privacy.together else ():
            value, usual = getattr(self.attendance, key), getattr(EVERYBODY, key)
            why = f"{usual} with privacy {name}, whose clients have to hand in together; it has drop_out of its own"
            require(value == usual, f"attendance.{key}", value, why)
        late = type(getattr(self, "staleness", Constant()))
        why = f"null with privacy {name}: updates are hidden before it is known how late they are, and count alike"
        require(late is Constant, "staleness", late.__name__, why)
        most = getattr(self, "max_staleness", None)
        why = f"null with privacy {name}: updates are hidden as they are merged, and what is dropped has been sent, too"
        require(most is None, "max_staleness", most, why)

    @property
    def asked_share(self) -> float:
        """Chance of a client with data to be asked in a round; 1 where the selection does not draw them alike."""
        drawn = type(self.selection) is Uniform and self.attendance.trace is None
        return min(1.0, float(self.asked / len(self.available))) if drawn else 1.0

    @property
    def why_unaccounted(self) -> str:
        """What besides the merged updates lets the network learn from clients' data; empty where nothing does."""
        own = self.why_not_together or self.why_learning
        return own if self.server_copies else "the server half learns from smashed data without noise"

    @property
    def why_learning(self) -> str:
        """What follows from clients' data in ways that nothing hides; empty where nothing does."""
        learns = self.effort is not None and type(self.effort).learn is not Effort.learn
        effort = f"{type(self.effort).__name__} goes by training results" if learns else ""
        return self.why_uneven or effort

    # --- updates ----------------------------------------------------------------------------------------------------

    @cached_property
    def guarded(self) -> dict[str, str]:
        """Names in the merged halves of what is hidden -> the name under which the same tensor came first.

        What acts at the client does not see a copy of the server half that is trained at the server.
        """
        apart = self.privacy.at_client and self.server_copies and not self.whole_on_client
        first: dict[int, str] = {}
        return {
            name: first.setdefault(id(parameter), name)
            for name, parameter in self.merged_halves().named_parameters(remove_duplicate=False)
            if parameter.requires_grad and not (apart and name.startswith("1."))
        }

    def aggregated(
        self, states: Sequence[State], anchor: State, weights: Sequence[float], clients: Sequence[int]
    ) -> State:
        if self.privacy is None:
            return super().aggregated(states, anchor, weights, clients)
        names = [name for name, first in self.guarded.items() if first == name and name in states[0]]
        moments, turns = [], Counter[int]()
        for client in clients:
            moments.append(Moment(self.seed, self.current_epoch, turns[client]))
            turns[client] += 1
        updates = [self.update_of(state, anchor, names) for state in states]
        hidden = [self.privacy.hide(*each) for each in zip(updates, clients, moments, strict=True)]
        if self.privacy.forms_mean:
            mean = self.privacy.average(hidden, weights, clients, moments)
            merged = super().aggregated(states, anchor, weights, clients)
            return {**merged, **self.moved(anchor, names, mean)}
        sent = [
            state if after is before else {**state, **self.moved(anchor, names, after)}
            for state, before, after in zip(states, updates, hidden, strict=True)
        ]
        return super().aggregated(sent, anchor, weights, clients)

    def update_of(self, state: State, anchor: State, names: Sequence[str]) -> Tensor:
        """What a client has changed, as one vector, on the device of the first of these names."""
        home = anchor[names[0]].device
        return torch.cat([(state[name] - anchor[name]).flatten().to(home) for name in names])

    def moved(self, anchor: State, names: Sequence[str], update: Tensor) -> State:
        """The anchor plus the update, by the names that are hidden, all of those that stand for one tensor alike."""
        pieces = update.split([anchor[name].numel() for name in names])
        found = {
            name: anchor[name] + piece.view_as(anchor[name]).to(anchor[name])
            for name, piece in zip(names, pieces, strict=True)
        }
        aliases = {name: found[first] for name, first in self.guarded.items() if name in anchor and first in found}
        return {**found, **aliases}

    # --- what is told -----------------------------------------------------------------------------------------------

    def sent_bytes(self, slot: int, plain_bytes: int) -> int:
        """Bytes that the client in this slot sends at its end, in place of so many."""
        if self.privacy is None:
            return plain_bytes
        parameters = dict(self.merged_halves().named_parameters())
        at_client = parameters if self.whole_on_client else {name for name in parameters if name.startswith("0.")}
        seen = [parameters[name] for name, first in self.guarded.items() if name == first and name in at_client]
        hidden, numbers = num_bytes(seen), sum(p.numel() for p in seen)
        clients, moment = self.feed.plan.participants, Moment(self.seed, self.current_epoch)
        update = self.privacy.upload_bytes(numbers, hidden // max(numbers, 1), slot, clients, moment)
        up, down = self.privacy.round_bytes(slot, clients, moment)
        if down:
            self.boundary.count("weights", "down", down)
        return plain_bytes - hidden + update + up

    def privacy_scalars(self) -> dict[str, float]:
        """What is recorded of the round's privacy."""
        return {} if self.privacy is None else self.privacy.scalars()

    def said_of_privacy(self) -> list[str]:
        """What the first screen says of it."""
        of_updates = [] if self.privacy is None else [f"privacy: {self.privacy.said()}"]
        noise = None if self.veil is None else self.veil.std
        return [*of_updates, *([] if noise is None else [f"smashed data: noise of std {noise:g} on every number"])]

    def data_identity(self) -> dict[str, Any]:
        return super().data_identity() | {"privacy": None if self.privacy is None else type(self.privacy).__name__}

    def memory(self) -> dict[str, Any]:
        kept = {} if self.privacy is None else {"privacy": self.privacy.state()}
        return {**super().memory(), **kept}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        if self.privacy is not None:
            self.privacy.load(memory["privacy"], self.device)
