"""Where rows come from: the corpus that sources yield, the digits that ship with the package, synthetic classes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_sfl.core.errors import DataError, require
from lightning_sfl.core.randomness import stream


@dataclass(frozen=True)
class Corpus:
    """A training and a test set.

    x: (rows, ...) uint8 images or floats, or (rows, length) int64 characters; y: (rows,) or (rows, length) int64 labels
    in 0..num_classes-1; owner: natural client of each training row; vocabulary: the characters, in order of code.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    name: str
    owner: np.ndarray | None = None
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        for part, x, y in (("training", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if not len(x) or len(x) != len(y):
                raise DataError(f"{self.name}: {len(x)} {part} inputs and {len(y)} labels")
            if y.min() < 0 or y.max() >= self.num_classes:
                raise DataError(f"{self.name}: {part} labels must lie in 0..{self.num_classes - 1}")
        if self.train_x.shape[1:] != self.test_x.shape[1:] or self.train_x.dtype != self.test_x.dtype:
            shapes = f"{tuple(self.train_x.shape[1:])} and {tuple(self.test_x.shape[1:])}"
            raise DataError(f"{self.name}: training and test inputs differ in shape or type ({shapes})")
        if self.owner is not None and len(self.owner) != len(self.train_y):
            raise DataError(f"{self.name}: {len(self.owner)} owners for {len(self.train_y)} training rows")


class Source(ABC):
    """Something that yields a corpus; its public attributes are its options."""

    @abstractmethod
    def load(self) -> Corpus:
        """The corpus, the same at every call; raises `DataError` when it cannot be had."""


class Digits(Source):
    """The 1,797 handwritten digits that ship with the package: 1,437 training, 360 test rows; (1, 8, 8) in [0, 1].

    The test rows (36 of each class) are marked in the file, so that no seed moves them.
    """

    @override
    def load(self) -> Corpus:
        with resources.files("lightning_sfl.data").joinpath("files/digits.npz").open("rb") as file:
            content = np.load(file, allow_pickle=False)
            images, labels, test = content["images"], content["labels"], content["test"]
        x = torch.from_numpy(images).float().div_(16).unsqueeze(1)
        y, held = torch.from_numpy(labels).long(), torch.from_numpy(test)
        return Corpus(x[~held], y[~held], x[held], y[held], num_classes=10, name="digits")


class Synthetic(Source):
    """Balanced Gaussian classes: a random prototype for each class plus `noise` times standard normal noise.

    Prototypes are standard normal in every feature; at noise 1 a few dozen features are easily told apart.
    """

    def __init__(
        self,
        rows: int = 2000,
        test_rows: int = 500,
        features: list[int] | None = None,
        num_classes: int = 10,
        noise: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.features = [1, 8, 8] if features is None else list(features)
        require(rows >= 1, "rows", rows, "1 or more")
        require(test_rows >= 1, "test_rows", test_rows, "1 or more")
        whole = bool(self.features) and min(self.features) >= 1
        require(whole, "features", features, "sizes of 1 or more, as [1, 8, 8]")
        require(num_classes >= 2, "num_classes", num_classes, "2 or more")
        require(0 <= noise < math.inf, "noise", noise, "a finite number of 0 or more")
        self.rows, self.test_rows, self.num_classes, self.noise, self.seed = rows, test_rows, num_classes, noise, seed

    @override
    def load(self) -> Corpus:
        prototypes = stream(self.seed, "prototypes").standard_normal((self.num_classes, *self.features), np.float32)
        train, test = self._draw("train", self.rows, prototypes), self._draw("test", self.test_rows, prototypes)
        return Corpus(*train, *test, num_classes=self.num_classes, name="synthetic")

    def _draw(self, part: str, rows: int, prototypes: np.ndarray) -> tuple[Tensor, Tensor]:
        rng = stream(self.seed, f"synthetic-{part}")
        y = rng.permutation(np.arange(rows) % self.num_classes)
        x = rng.standard_normal((rows, *self.features), np.float32)
        x *= np.float32(self.noise)
        for label, prototype in enumerate(prototypes):  # in place: a large set is never in memory twice
            x[y == label] += prototype
        return torch.from_numpy(x), torch.from_numpy(y)
