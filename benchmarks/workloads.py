"""What is run: workloads, and the two ways to run one, through the platform and through the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.lanes import Lane
from benchmarks.plain import PlainFedAvg, PlainSFL
from lightning_sfl.backbones import DigitsCNN, LeNet5
from lightning_sfl.core.rounds import Plan, Work, plan_round
from lightning_sfl.core.selection import Uniform
from lightning_sfl.core.split import split
from lightning_sfl.data import IID, Corpus, Digits, Dirichlet, FederatedData, Source
from lightning_sfl.methods import SFL, FedAvg, SplitMethod

State = dict[str, Tensor]
LEARNING_RATE = 0.1
TOLERANCE = 1e-9  # between the weights of two loops, in double precision


class RandomImages(Source):
    """Bytes and labels drawn at random, stored as image sets are: (rows, *shape) uint8."""

    def __init__(self, rows: int, shape: Sequence[int] = (3, 32, 32)) -> None:
        self.rows, self.shape = rows, list(shape)

    @override
    def load(self) -> Corpus:
        draw = torch.Generator().manual_seed(0)
        rows = self.rows + 10
        x = torch.randint(0, 256, (rows, *self.shape), dtype=torch.uint8, generator=draw)
        y = torch.randint(0, 10, (rows,), generator=draw)
        return Corpus(x[:-10], y[:-10], x[-10:], y[-10:], num_classes=10, name="random")


@dataclass(frozen=True)
class Workload:
    """A method, a network and data; `options` say what work a client does in a round, in both loops."""

    name: str
    method: type[SplitMethod]
    backbone: Callable[[], nn.Module]
    data: FederatedData
    rounds: int
    cut_layer: str
    options: dict[str, Any] = field(default_factory=dict)
    participants: int = 10

    def initial(self) -> nn.Module:
        """The network, with the same weights at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return self.backbone()

    def plans(self) -> list[Plan]:
        """Who trains on which rows in each round, as the platform plans it."""
        self.data.setup()
        population, work = self.data.population, Work(self.options["batch_size"], self.options["local_epochs"])
        available = [client for client, size in enumerate(population.sizes) if size]
        plans = []
        for index in range(self.rounds):
            chosen = Uniform().select(index, available, self.participants, 0)  # type: ignore[arg-type]
            plans.append(plan_round(0, index, chosen, [population.rows[c] for c in chosen], work, "sorted"))
        return plans

    @property
    def aim(self) -> str:
        """One client step for all participants should pay where steps are small, and cost little where they are not."""
        return ">= 0.95" if self.backbone is LeNet5 else ">= 1.15"


def digits(clients: int, seed: int = 0) -> FederatedData:
    """The bundled digits, all training rows dealt by Dirichlet(0.3)."""
    return FederatedData(
        Digits(), Dirichlet(alpha=0.3), num_clients=clients, val_fraction=0.0, eval_set="test", seed=seed
    )


def images(clients: int, rows_per_client: int) -> FederatedData:
    """Random images of CIFAR's size, dealt evenly."""
    source = RandomImages(clients * rows_per_client)
    return FederatedData(source, IID(), num_clients=clients, val_fraction=0.0, eval_set="test")


def workloads(clients: int, rounds: int, rows_per_client: int, image_rounds: int) -> list[Workload]:
    """FedAvg and SFL, each on a small network that costs little but calls, and on one that computes."""
    small: dict[str, Any] = {"batch_size": 10, "local_epochs": 5}
    large: dict[str, Any] = {"batch_size": 50, "local_epochs": 1}
    few, many = digits(clients), images(clients, rows_per_client)
    looped = [
        Workload("W1 FedAvg, digits CNN", FedAvg, DigitsCNN, few, rounds, "pool", small),
        Workload("W3 SFL, digits CNN", SFL, DigitsCNN, few, rounds, "pool", small),
        Workload("W2 FedAvg, LeNet-5", FedAvg, LeNet5, many, image_rounds, "pool2", large),
        Workload("W2 SFL, LeNet-5", SFL, LeNet5, many, image_rounds, "pool2", large),
    ]
    return looped + [stacked(work) for work in looped]


def stacked(work: Workload) -> Workload:
    """The same work with all clients of a step in one stroke."""
    options = work.options | {"client_engine": "stacked"}
    return replace(work, name=f"{work.name}, stacked", options=options)


class Laps(L.Callback):
    """Ends a lap of its lane wherever Lightning begins a round, so that all that Lightning does is inside."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.lane.lap()

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.lane.lap()


def run_ours(work: Workload, lane: Lane, watching: Sequence[L.Callback] = (), **options: Any) -> State:
    """The workload through Lightning and the platform's loop, without validation; the final weights."""
    module = work.method(work.initial(), work.cut_layer, participants=work.participants, **work.options)
    quiet: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0, "limit_val_batches": 0, "accelerator": "cpu", "devices": 1,
        "use_distributed_sampler": False, "log_every_n_steps": 1, "max_epochs": work.rounds,
    }  # fmt: skip
    L.Trainer(**{**quiet, **options}, callbacks=[*watching, Laps(lane)]).fit(module, work.data)
    return copied({**module.client_half.state_dict(), **module.server_half.state_dict()})


def run_plain(work: Workload, lane: Lane) -> State:
    """The workload through the plain loop, which gets its plans for nothing; the final weights."""
    loop: PlainFedAvg | PlainSFL
    if issubclass(work.method, SFL):
        halves = split(work.initial(), work.cut_layer, work.data.example())
        loop = PlainSFL(halves.client_half, halves.server_half, work.data.population, LEARNING_RATE)
    else:
        loop = PlainFedAvg(work.initial(), work.data.population, LEARNING_RATE)
    for plan in work.plans():
        lane.lap()
        loop.round(plan)
    lane.lap()
    return copied(loop.state())


def copied(state: State) -> State:
    """Copies of these tensors."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def furthest(one: State, other: State) -> float:
    """The largest absolute difference of two states; infinite when they do not hold the same names."""
    if one.keys() != other.keys():
        return float("inf")
    return max(float((one[name] - other[name]).abs().max()) for name in one)
