"""A network, a population and a Trainer small enough that a fit takes some tens of milliseconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from lightning_sfl.checks.states import differing, furthest
from lightning_sfl.core import events
from lightning_sfl.core.population import Population
from lightning_sfl.methods import SplitMethod
from tests.every_method import FIXED, PLAIN, PLAIN_STEPS

__all__ = ["differing", "furthest"]  # and all below; these two are the package's own
NUM_FEATURES, NUM_CLASSES = 6, 4
CUTS = ("fc1", "relu1", "fc2", "relu2")
torch.set_num_threads(1)


class Once:
    """A loader of given batches."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = list(batches)

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Rows(L.LightningDataModule):
    """Clients that own the given rows of x and y; by default client i owns the i-th stretch of `sizes[i]` rows."""

    eval_set = "val"

    def __init__(self, x: Tensor, y: Tensor, rows: Sequence[Sequence[int]], num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.population = Population(x, y, tuple(np.asarray(r, dtype=np.int64) for r in rows))

    def example(self) -> Tensor:
        return self.population.x[:2]

    def train_dataloader(self) -> list[int]:
        return [0]

    def val_dataloader(self) -> Once:
        return Once([(self.population.x, self.population.y)])

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> Once:
        return Once([self.population.x])


def stretches(sizes: Sequence[int]) -> list[range]:
    ends = np.cumsum(sizes).tolist()
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def rows(sizes: Sequence[int] = (5, 4, 9), seed: int = 0, dtype: torch.dtype = torch.float32) -> Rows:
    """Noisy clusters, one per class, dealt to clients of these sizes."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(NUM_CLASSES, NUM_FEATURES, generator=draw)
    y = torch.randint(0, NUM_CLASSES, (sum(sizes),), generator=draw)
    x = centres[y] + 0.5 * torch.randn(sum(sizes), NUM_FEATURES, generator=draw)
    return Rows(x.to(dtype), y, stretches(sizes))


def network(dropout: float = 0.0, norm: bool = False, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """fc1 [bn1] relu1 [drop1] fc2 [bn2] relu2 [drop2] head, always with the same initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (below, above) in enumerate([(NUM_FEATURES, 8), (8, 7)], start=1):
            stages[f"fc{i}"] = nn.Linear(below, above)
            if norm:
                stages[f"bn{i}"] = nn.BatchNorm1d(above)
            stages[f"relu{i}"] = nn.ReLU()
            if dropout:
                stages[f"drop{i}"] = nn.Dropout(dropout)
        stages["head"] = nn.Linear(7, NUM_CLASSES)
    return nn.Sequential(stages).to(dtype)


def sgd(lr: float = 0.1, momentum: float = 0.0) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def plain(factory: Callable[[Any], torch.optim.Optimizer]) -> Callable[[Any], torch.optim.Optimizer]:
    """Plain SGD of the rate that this optimizer has."""
    return lambda parameters: torch.optim.SGD(parameters, lr=factory(parameters := [*parameters]).defaults["lr"])


def build(
    cls: type[SplitMethod], net: nn.Module | None = None, cut_layer: str = "relu1", **options: Any
) -> SplitMethod:
    """The method with these options, but for those that it fixes itself."""
    taken = {key: value for key, value in options.items() if key not in FIXED.get(cls, set())}
    if cls in PLAIN_STEPS and "client_optimizer" in taken:
        taken["client_optimizer"] = plain(taken["client_optimizer"])
    return cls(net if net is not None else network(), cut_layer, **{**PLAIN.get(cls, {}), **taken})


def trainer(rounds: int = 1, callbacks: Sequence[L.Callback] = (), **options: Any) -> L.Trainer:
    quiet = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0, "use_distributed_sampler": False, "accelerator": "cpu", "devices": 1,
        "log_every_n_steps": 1, "limit_val_batches": 0,
    }  # fmt: skip
    return L.Trainer(max_epochs=rounds, callbacks=list(callbacks), **(quiet | options))


def fit(
    method: SplitMethod,
    data: Rows | None = None,
    rounds: int = 1,
    callbacks: Sequence[L.Callback] = (),
    resume: Path | None = None,
    **options: Any,
) -> SplitMethod:
    data = rows() if data is None else data
    if data.population.x.dtype == torch.float64:
        options["precision"] = "64-true"
    trainer(rounds, callbacks, **options).fit(method, data, ckpt_path=resume)
    return method


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def whole(method: SplitMethod) -> dict[str, Tensor]:
    """A copy of the merged network's state by the backbone's names, wherever it was cut."""
    return weights(method.client_half) | weights(method.server_half)


class Recorder(L.Callback):
    """Counts every event and keeps what is asked about afterwards, in the order in which it came."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.starts: list[dict[str, Tensor]] = []
        self.ends: list[dict[str, Tensor]] = []
        self.traffic_bytes: list[dict[tuple[str, str], int]] = []
        self.losses: list[float] = []

    def count(self, record: type[Any], client: int | None = None) -> int:
        """Events of this kind; with a client, those of its slot or that list it."""
        return sum(1 for event in self.events if isinstance(event, record) and client in (None, *clients_of(event)))

    def of(self, record: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, record)]

    def on_client_start(self, module: SplitMethod, event: events.ClientStart) -> None:
        self.events.append(event)
        self.starts.append(weights(event.client_half))

    def on_client_end(self, module: SplitMethod, event: events.ClientEnd) -> None:
        self.events.append(event)
        self.ends.append(weights(event.client_half))

    def on_round_end(self, module: SplitMethod, event: events.RoundEnd) -> None:
        self.events.append(event)
        self.traffic_bytes.append(event.traffic_bytes)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SplitMethod)
        self.losses.append(module.tally.read()[0])

    def _keep(self, module: SplitMethod, event: Any) -> None:
        self.events.append(event)

    on_round_start = on_cut_gradient = on_client_backward = on_client_step = _keep
    on_server_backward = on_server_step = _keep


def clients_of(event: Any) -> list[int]:
    """Who an event is about."""
    if hasattr(event, "turns"):
        return [turn.client_id for turn in event.turns]
    if hasattr(event, "client_ids"):
        return list(event.client_ids)
    return [event.client_id] if hasattr(event, "client_id") else []
