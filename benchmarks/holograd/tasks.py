"""Networks and real data as functions of one flat vector of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sfl.backbones import MLP, CausalTransformer, DigitsCNN
from lightning_sfl.core.population import as_input
from lightning_sfl.core.randomness import key_of, stream
from lightning_sfl.data import Digits, Parquet, PlayText
from lightning_sfl.data.source import Corpus

BUNDLED = ("digits-mlp", "digits-cnn")
FROM_FOLDER = {"text-gpt": "shakespeare/input.txt", "mnist-mlp": "mnist"}


def corpus_of(name: str, folder: Path | None) -> Corpus:
    """The data of a task; all but the digits come from `folder`."""
    if name in BUNDLED:
        return Digits().load()
    if folder is None:
        raise SystemExit(f"task={name} is not allowed: it needs --data FOLDER with {FROM_FOLDER[name]} in it")
    path = str(folder / FROM_FOLDER[name])
    return PlayText(path, length=32).load() if name == "text-gpt" else Parquet(path).load()


def network_of(name: str, corpus: Corpus) -> nn.Module:
    """A small network for it: 9,610, 38,282, 19,000 and 25,450 parameters in the order of the names above."""
    made: dict[str, Callable[[], nn.Module]] = {
        "digits-mlp": lambda: MLP(64, (128,)),
        "digits-cnn": DigitsCNN,
        "text-gpt": lambda: CausalTransformer(corpus.num_classes, context=32, width=32, heads=4, layers=1),
        "mnist-mlp": lambda: MLP(784, (32,)),
    }
    return made[name]()


class Problem:
    """Mean loss over training rows, and its gradient, at any vector of parameters; `start` follows from `seed`."""

    def __init__(self, name: str, folder: Path | None, seed: int) -> None:
        corpus = corpus_of(name, folder)
        self.name, self.seed = name, seed
        self.x, self.y = as_input(corpus.train_x), corpus.train_y
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key_of(seed, "weights") & 0xFFFFFFFF)
            self.net = network_of(name, corpus)
        parameters = list(self.net.parameters())
        self.start = torch.cat([p.detach().flatten() for p in parameters])
        self._at, self._gradient = self.start.clone(), torch.zeros_like(self.start)
        sizes = [p.numel() for p in parameters]
        for p, at, g in zip(parameters, self._at.split(sizes), self._gradient.split(sizes), strict=True):
            p.data, p.grad = at.view_as(p), g.view_as(p)

    @property
    def size(self) -> int:
        return len(self.start)

    def batch(self, purpose: str, step: int, size: int) -> np.ndarray:
        """Rows drawn with replacement."""
        return stream(self.seed, purpose, step).integers(0, len(self.y), size)

    def _loss(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        index = torch.from_numpy(np.asarray(rows))
        logits = self.net(self.x[index])
        return cross_entropy(logits.flatten(0, -2), self.y[index].flatten())

    def gradient(self, theta: Tensor, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Gradient of the mean loss over these rows, (size,)."""
        self._at.copy_(theta)
        self._gradient.zero_()
        self._loss(rows).backward()
        return self._gradient.clone()

    def loss(self, theta: Tensor, most_rows: int = 1500) -> float:
        """Mean loss over all training rows, or the first `most_rows`."""
        return self.loss_on(theta, np.arange(min(len(self.y), most_rows)))

    @torch.no_grad()
    def loss_on(self, theta: Tensor, rows: np.ndarray) -> float:
        """Mean loss over these rows."""
        self._at.copy_(theta)
        return float(self._loss(rows))
