"""What stands between what a client has learned and what is made of it: the verbs that every ingredient has.

An update is one flat vector (D,) of all trained floating parameters: what a client hands in minus the merged state of
the round before, or its gradient where gradients are handed in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.randomness import stream


@dataclass(frozen=True)
class Moment:
    """Where in a run an update is handed in; turn: how many the same client handed in before it in this round."""

    seed: int
    round: int
    turn: int = 0

    def draws(self, purpose: str, client: int = 0) -> np.random.Generator:
        """The stream of this purpose, the same on every process and after every resume."""
        return stream(self.seed, purpose, self.round, client, self.turn)


@dataclass(frozen=True)
class Setting:
    """What an ingredient is told before the first round.

    participants: updates that a round merges at most; rate: share of the clients that a round asks; unaccounted:
    why no privacy account can be kept for this method and its options, empty where it can; uniform: all updates have
    the same weight.
    """

    participants: int
    rate: float
    unaccounted: str = ""
    uniform: bool = False


class Privacy(ABC):
    """Changes updates before they are merged.

    at_client: it acts before anything leaves the client, and so on what the client sends; else on all that is merged.
    forms_mean: it makes one mean update of all, so that no other aggregator has a say.
    together: its clients have to be there at the same time, and hand in together.
    uniform: why all clients have to count alike; empty where they need not.
    unguarded: what becomes of floating buffers that travel beside the parameters, where that would defeat it.
    """

    at_client: ClassVar[bool] = True
    forms_mean: ClassVar[bool] = False
    together: ClassVar[bool] = False
    uniform: ClassVar[str] = ""
    unguarded: ClassVar[str] = "travel as they are"

    def prepare(self, setting: Setting) -> None:
        """Begin anew: forget what an earlier run has left."""
        self.setting = setting

    @abstractmethod
    def hide(self, update: Tensor, client: int, moment: Moment) -> Tensor:
        """What is merged instead of this update; the very same tensor where nothing is changed."""

    def average(
        self, updates: Sequence[Tensor], weights: Sequence[float], clients: Sequence[int], moments: Sequence[Moment]
    ) -> Tensor:
        """The mean update, for those that form it themselves."""
        raise NotImplementedError(f"{type(self).__name__} forms no mean")

    def upload_bytes(self, numbers: int, number_bytes: int, place: int, clients: Sequence[int], moment: Moment) -> int:
        """Bytes that the client at this place of the round's clients sends for an update of so many numbers."""
        return numbers * number_bytes

    def round_bytes(self, place: int, clients: Sequence[int], moment: Moment) -> tuple[int, int]:
        """Bytes that it sends, and receives, besides its update."""
        return 0, 0

    def scalars(self) -> dict[str, float]:
        """What is recorded of the round, by tag."""
        return {}

    def said(self) -> str:
        """What the first screen says of it, in one line."""
        return type(self).__name__

    def state(self) -> dict[str, Any]:
        """What it goes on from, as tensors and plain containers."""
        return {}

    def load(self, state: dict[str, Any], device: torch.device) -> None:  # noqa: B027
        """Take up what `state` gave."""


def clipped(update: Tensor, clip: float) -> Tensor:
    """The update shortened to this norm; itself where it is no longer than that, as one of norm 0 always is."""
    norm = float(update.double().norm())
    return update if norm <= clip else update * (clip / norm)


def gaussian(update: Tensor, std: float, draws: np.random.Generator) -> Tensor:
    """The update plus independent N(0, std^2) on every number; itself where there is no noise."""
    if std == 0:
        return update
    noise = torch.from_numpy(draws.normal(0.0, std, update.shape))
    return update + noise.to(update)


def check_clip(clip: float, noise: float, setting: str = "privacy") -> None:
    """Refuse norms and noises that cannot be."""
    if not (clip > 0 and 0 <= noise < float("inf") and (clip < float("inf") or noise == 0)):
        key, value = ("clip", clip) if not clip > 0 or clip == float("inf") else ("noise_multiplier", noise)
        allowed = "a number > 0, infinite only without noise" if key == "clip" else "a finite number >= 0"
        raise ConfigError(f"{setting}.{key}={value!r} is not allowed: {allowed}")
