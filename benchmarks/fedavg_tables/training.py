"""One run of a cell through the project's own loop, stopped at the target and continued where it was interrupted."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR
from typing_extensions import override

from benchmarks.fedavg_tables.cells import Cell, Run, participants_of
from benchmarks.fedavg_tables.variants import varied
from lightning_sfl.backbones import MLP, CharLSTM, FedAvgCNN
from lightning_sfl.checkpoint import DurableCheckpointIO
from lightning_sfl.core.errors import NonFiniteError
from lightning_sfl.core.rounds import Batch, Plan
from lightning_sfl.data import FederatedData
from lightning_sfl.methods import Centralized, FedAvg, FedSGD, SplitMethod
from lightning_sfl.records.curves import Point

NEAR = 0.01  # this far from the target every round is judged
NEAR_SHARE = 1 / 3  # or this share of what the target leaves wrong, where that is less: 99 % is a long way from 98 %
FAR_EVERY = 5  # further away, every fifth
FAIR_ROUNDS = 20  # before that no rate is clearly worse
SAVE_EVERY_S = 120.0
NETWORKS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "2nn": (MLP, "relu1"),
    "cnn": (FedAvgCNN, "pool1"),
    "lstm": (CharLSTM, "lstm1"),
    "cifar": (partial(FedAvgCNN, in_channels=3, image_size=32), "pool1"),
}


class InTurn(FedAvg):
    """FedAvg, bit for bit, one client after another: activations of one client at a time are in memory."""

    @override
    def steps(self, plan: Plan) -> Iterator[list[Batch]]:
        return plan.sequential()


@dataclass(frozen=True)
class Limits:
    """Where a run ends: beyond `rounds`, or when it falls behind `leader`, the best rate's curve; and `deadline`."""

    rounds: int
    leader: list[Point] = field(default_factory=list)
    deadline: float = float("inf")

    def hopeless(self, rounds: int, best: float) -> bool:
        """Whether the best accuracy after so many rounds is less than the leader had after half as many."""
        if rounds < FAIR_ROUNDS:
            return False
        return best < max((value for x, value in self.leader if x <= rounds / 2), default=0.0)


@dataclass
class Outcome:
    """reached, capped, abandoned, diverged or unfinished; the curve of judged rounds; seconds of all its sittings."""

    end: str = "unfinished"
    curve: list[Point] = field(default_factory=list)
    rounds: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0


def is_near(best: float, target: float) -> bool:
    """Whether every round is judged from here on."""
    return best >= target - min(NEAR, NEAR_SHARE * (1 - target))


class Race(L.Callback):
    """Follows a run up to its target, and keeps a checkpoint now and then, with the curve in it."""

    def __init__(self, cell: Cell, limits: Limits, checkpoint: Path | None, show: Callable[[Outcome], None]) -> None:
        self.cell, self.limits, self.checkpoint, self.show = cell, limits, checkpoint, show
        self.outcome = Outcome()
        self.saved = self.told = time.monotonic()

    @override
    def state_dict(self) -> dict[str, Any]:
        kept = self.outcome
        return {"curve": kept.curve, "rounds": kept.rounds, "cpu_s": kept.cpu_s, "wall_s": kept.wall_s}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        curve = [(float(x), float(y)) for x, y in state_dict["curve"]]
        self.outcome = Outcome(curve=curve, **{key: state_dict[key] for key in ("rounds", "cpu_s", "wall_s")})

    @property
    def best(self) -> float:
        """The highest accuracy so far."""
        return max((value for _, value in self.outcome.curve), default=0.0)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock = time.process_time(), time.perf_counter()
        near = is_near(self.best, self.cell.target) or trainer.current_epoch == 0
        trainer.check_val_every_n_epoch = 1 if near else FAR_EVERY

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.outcome.curve.append((trainer.current_epoch + 1.0, float(trainer.callback_metrics["test/acc"])))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        kept = self.outcome
        kept.rounds = trainer.current_epoch + 1
        kept.cpu_s += time.process_time() - self.clock[0]
        kept.wall_s += time.perf_counter() - self.clock[1]
        kept.end = self.end_of(kept.rounds)
        late = time.monotonic() >= self.limits.deadline
        if self.checkpoint and kept.end == "unfinished" and (late or time.monotonic() - self.saved > SAVE_EVERY_S):
            trainer.save_checkpoint(self.checkpoint)
            self.saved = time.monotonic()
        trainer.should_stop = late or kept.end != "unfinished"
        if time.monotonic() - self.told > 1 or trainer.should_stop:
            self.show(kept)
            self.told = time.monotonic()

    def end_of(self, rounds: int) -> str:
        """Why the run is over, or unfinished."""
        if self.best >= self.cell.target:
            return "reached"
        if rounds >= self.cell.cap:
            return "capped"
        behind = rounds >= self.limits.rounds or self.limits.hopeless(rounds, self.best)
        return "abandoned" if behind else "unfinished"


def method_of(run: Run, clients: int, vocabulary: int | None) -> SplitMethod:
    """The method with the network of this seed; the whole network is trained by clients, or by the one place."""
    cell, options = run.cell, {} if vocabulary is None else {"vocab_size": vocabulary}
    make, cut_layer = NETWORKS[cell.network]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        network = make(**options)
        if cell.variant:
            network = varied(cast(nn.Sequential, network), cell.start, cell.inputs)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the same sums in a faster order
    optimizer, common = partial(SGD, lr=run.rate), {"seed": run.seed}
    schedule = None if cell.decay == 1 else partial(ExponentialLR, gamma=cell.decay)
    if cell.method == "sgd":
        both = {"client_optimizer": optimizer, "server_optimizer": optimizer}
        schedules = {"client_scheduler": schedule, "server_scheduler": schedule}
        return Centralized(network, cut_layer, batch_size=cell.batch_size, **both, **schedules, **common)  # type: ignore[arg-type]
    common["participants"] = participants_of(cell.fraction, clients)
    if cell.method == "fedsgd":
        return FedSGD(network, cut_layer, server_optimizer=optimizer, server_scheduler=schedule, **common)  # type: ignore[arg-type]
    kind = FedAvg if cell.network == "2nn" else InTurn
    work: dict[str, Any] = {"batch_size": cell.batch_size, "local_epochs": cell.epochs}
    return kind(network, cut_layer, client_optimizer=optimizer, client_scheduler=schedule, **work, **common)


def quiet() -> None:
    """Silence what Lightning says of every Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def quiet_trainer(rounds: int, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """A Trainer that records nothing and does nothing besides the rounds."""
    return L.Trainer(
        max_epochs=rounds, callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu", devices=1,
        use_distributed_sampler=False, log_every_n_steps=1, **options,
    )  # fmt: skip


def train(
    run: Run, data: FederatedData, limits: Limits, checkpoint: Path | None, show: Callable[[Outcome], None]
) -> Outcome:
    """Train until the target, a limit or the deadline; goes on from `checkpoint` where there is one."""
    quiet()
    data.setup()
    vocabulary = None if data.vocabulary is None else len(data.vocabulary)
    method = method_of(run, data.population.num_clients, vocabulary)
    race = Race(run.cell, limits, checkpoint, show)
    trainer = quiet_trainer(run.cell.cap, [race], plugins=[DurableCheckpointIO()])
    resumed = checkpoint if checkpoint is not None and checkpoint.is_file() else None
    try:
        trainer.fit(method, data, ckpt_path=resumed)
    except NonFiniteError:
        race.outcome.end = "diverged"
    return race.outcome


def telling(curve: list[Point]) -> list[Point]:
    """The points on which crossings depend: those that are better than all before, those before them, and the last."""
    kept, top = set(), float("-inf")
    for place, (_, value) in enumerate(curve):
        if value > top:
            kept |= {place - 1, place} - {-1}
            top = value
    return [point for place, point in enumerate(curve) if place in kept or place == len(curve) - 1]
