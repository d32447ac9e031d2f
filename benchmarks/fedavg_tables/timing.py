"""The time of a round, measured without training a whole one: two clients are enough where a hundred are asked."""

from __future__ import annotations

import time
from dataclasses import replace

import lightning as L
import numpy as np
from typing_extensions import override

from benchmarks.fedavg_tables.cells import Cell, Run, participants_of
from benchmarks.fedavg_tables.training import method_of, quiet, quiet_trainer
from lightning_sfl.data import FederatedData

FEW = 2


class RoundClock(L.Callback):
    """Processor seconds of the last round."""

    seconds = 0.0

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = time.process_time()

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.process_time() - self.begun


def round_seconds(cell: Cell, data: FederatedData) -> float:
    """Processor seconds of a round and of judging it: the second of two rounds of two clients, scaled up by rows."""
    quiet()
    population = data.population
    asked = 1 if cell.method == "sgd" else participants_of(cell.fraction, population.num_clients)
    few = min(FEW, asked)
    small = replace(cell, fraction=few / population.num_clients)
    vocabulary = None if data.vocabulary is None else len(data.vocabulary)
    method = method_of(Run(small, cell.start_rate, 0), population.num_clients, vocabulary)
    clock = RoundClock()
    trainer = quiet_trainer(2, [clock], limit_val_batches=0)
    trainer.fit(method, data)
    trained = sum(population.sizes[client] for client in method.participants_of(1))
    share = 1.0 if cell.method == "sgd" else asked * float(np.mean(population.sizes)) / trained
    begun = time.process_time()
    quiet_trainer(1, []).validate(method, data, verbose=False)
    return clock.seconds * share + time.process_time() - begun
