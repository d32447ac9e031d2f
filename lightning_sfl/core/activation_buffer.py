"""The server's buffer of uploads, and the batch it makes of them: as they are, or balanced by generated rows (GAS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.activation_statistics import ActivationStatistics, Covariance
from lightning_sfl.core.cut import Smashed, Upload, join, like, parts
from lightning_sfl.core.errors import ConfigError, require


@dataclass(frozen=True)
class Generation:
    """Activations that the server makes up, so that it learns from equally many rows of every label.

    Args:
        every: generate at every so many server steps; 0 for never.
        covariance: of the activations of a label: variances only, or the full matrix (the paper).
        largest_full: refuse the full matrix of activations with more numbers than that.
        overflow: of a label with more rows than a batch: keep the first ones, keep all, or draw from them.
        partial: generate also before every label has been seen, for those that have.
        nonnegative: set negative generated numbers to zero, as behind a ReLU.
    """

    every: int = 1
    covariance: Covariance = "diagonal"
    largest_full: int = 4096
    overflow: Literal["truncate", "keep", "subsample"] = "truncate"
    partial: bool = False
    nonnegative: bool = False

    def __post_init__(self) -> None:
        require(self.every >= 0, "generation.every", self.every, "an integer >= 0")
        known = self.covariance in ("diagonal", "full")
        require(known, "generation.covariance", self.covariance, "diagonal or full")
        require(self.largest_full >= 1, "generation.largest_full", self.largest_full, "an integer >= 1")
        ways = ("truncate", "keep", "subsample")
        require(self.overflow in ways, "generation.overflow", self.overflow, f"one of {ways}")


GENERATION = Generation()


def balance(
    rows: Tensor,
    labels: Tensor,
    target: int,
    statistics: ActivationStatistics,
    how: Generation,
    draws: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """`target` rows (rows, dim) of every known label, ordered by label: real ones first, then generated ones."""
    found: list[Tensor] = []
    for label in statistics.known:
        real = rows[labels == label]
        if len(real) > target and how.overflow != "keep":
            chosen = (
                draws.choice(len(real), target, replace=False) if how.overflow == "subsample" else np.arange(target)
            )
            real = real[torch.from_numpy(chosen).to(real.device)]
        if len(real) < target:
            made = statistics.draw(label, target - len(real), draws)
            real = torch.cat([real, made.clamp_min(0) if how.nonnegative else made])
        found.append(real)
    sizes = torch.tensor([len(part) for part in found])
    return torch.cat(found), torch.tensor(statistics.known).repeat_interleave(sizes).to(labels)


class ActivationBuffer:
    """Uploads with their weights, in order of arrival, until there are enough for a server step.

    generated: rows of the last joint batch that were made up.
    """

    def __init__(self, size: int, num_classes: int, generation: Generation) -> None:
        self.size, self.generation = size, generation
        self.statistics = ActivationStatistics(num_classes, generation.covariance)
        self.uploads: list[Upload] = []
        self.weights: list[float] = []
        self.generated = 0

    @property
    def full(self) -> bool:
        return len(self.uploads) >= self.size

    def add(self, upload: Upload, weight: float) -> None:
        """An upload arrives. Generation needs one tensor at the cut and one label a row."""
        if self.generation.every:
            plain = isinstance(upload.received, Tensor) and upload.labels.ndim == 1
            require(plain, "generation.every", self.generation.every, "0 where a tuple is cut or a row has many labels")
            self._check_size(upload)
        self.uploads.append(upload)
        self.weights.append(weight)

    def _check_size(self, upload: Upload) -> None:
        dim = parts(upload.received)[0][0].numel()
        if self.generation.covariance == "full" and dim > self.generation.largest_full:
            raise ConfigError(
                f"generation.covariance='full' is not allowed: {dim} numbers at the cut are more than "
                f"generation.largest_full={self.generation.largest_full}"
            )

    def joint_batch(self, target: int, step: int, draws: np.random.Generator) -> tuple[Smashed, Tensor]:
        """What the server's `step`-th step, counted from 1, learns from; the buffer's rows enter the statistics."""
        received, labels = join(self.uploads), torch.cat([upload.labels for upload in self.uploads])
        self.generated = 0
        if not self.generation.every or isinstance(received, tuple):
            return received, labels
        rows = received.detach().flatten(1)
        counts = [upload.num_rows for upload in self.uploads]
        self.statistics.update(rows, labels, torch.tensor(np.repeat(self.weights, counts)).to(rows.device))
        complete = self.generation.partial or len(self.statistics.known) == self.statistics.num_classes
        if step % self.generation.every or not complete:
            return received, labels
        present = torch.bincount(labels, minlength=self.statistics.num_classes).tolist()
        self.generated = sum(max(0, target - present[label]) for label in self.statistics.known)
        made, labels = balance(rows, labels, target, self.statistics, self.generation, draws)
        return made.view(-1, *received.shape[1:]).requires_grad_(), labels

    def clear(self) -> None:
        """The server has taken its step."""
        self.uploads, self.weights = [], []

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        kept = [[u.slot, u.client_id, u.local_step, list(parts(u.received)), u.labels] for u in self.uploads]
        tuples = [isinstance(upload.received, tuple) for upload in self.uploads]
        return {"uploads": kept, "tuples": tuples, "weights": self.weights, "statistics": self.statistics.state()}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up what `state` gave."""
        self.uploads = []
        for (slot, client, step, tensors, labels), several in zip(state["uploads"], state["tuples"], strict=True):
            received = like((tensors[0],) if several else tensors[0], [tensor.to(device) for tensor in tensors])
            self.uploads.append(Upload(slot, client, step, received, received, labels.to(device)))
        self.weights = list(state["weights"])
        self.statistics.load(state["statistics"], device)
