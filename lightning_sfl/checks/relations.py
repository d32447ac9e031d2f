"""Methods that must coincide, on the user's network, cut, data and optimizers."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from lightning_sfl.checks.bench import Bench
from lightning_sfl.checks.finding import Measured
from lightning_sfl.checks.halves import need_plain_layers
from lightning_sfl.checks.seen import plans_of, with_rates
from lightning_sfl.checks.states import furthest
from lightning_sfl.checks.surroundings import refusals_are_reasons
from lightning_sfl.core.rounds import Plan
from lightning_sfl.methods import SFLV1, Centralized, FedAvg, FedSGD, MiniBatchSFL, SplitLearning
from lightning_sfl.methods.evaluation import EvaluatedModule

OF_CLIENTS = ("server_optimizer", "server_scheduler", "server_clip", "persist_server_optimizer")
OF_SERVERS = ("client_optimizer", "client_scheduler", "client_clip", "batch_size", "local_epochs", "local_steps")
ONE_BATCH: dict[str, Any] = {"batch_size": None, "local_epochs": 1, "local_steps": None}


def with_one_client(bench: Bench) -> Measured:
    """One client has all the data; not applicable where the method picks or repeats rows of its own accord."""
    own_loss = type(bench.method).loss is not EvaluatedModule.loss
    bench.need(not own_loss, "the method has a loss of its own, centralized training the mean cross-entropy")
    alone, method = bench.few.only([0]), bench.new(participants=1)
    pooled = bench.reference(Centralized, participants=1, persist_server_optimizer=method.persist_server_optimizer)
    plans = plans_of(method), plans_of(pooled)
    with refusals_are_reasons():
        found = bench.exact(method, alone)
    wanted = bench.exact(pooled, alone)
    bench.need(bool(plans[0][0].batches), "clients draw their batches as they arrive")
    bench.need(same_batches(plans[0][0], plans[1][0]), "the method plans other batches than all rows in passes")
    return Measured(furthest(found, wanted), bench.rounding)


def same_batches(one: Plan, other: Plan) -> bool:
    """Whether the same rows come in the same order."""
    rows = [[batch.rows for batch in chain.from_iterable(plan.batches)] for plan in (one, other)]
    return len(rows[0]) == len(rows[1]) and all(np.array_equal(a, b) for a, b in zip(*rows, strict=True))


def split_learning_alone(bench: Bench) -> Measured:
    """Two rounds of split learning with one client."""
    alone = bench.few.only([0])
    states = [bench.exact(bench.reference(cls, participants=1), alone, 2) for cls in (SplitLearning, Centralized)]
    return Measured(furthest(*states), bench.rounding)


def private_copies(bench: Bench) -> Measured:
    """Two rounds of SplitFed V1, both halves with the clients' optimizer."""
    averaged = bench.reference(FedAvg, OF_CLIENTS)
    optimizer, scheduler = averaged.factories["client"]
    split = bench.reference(SFLV1, server_optimizer=optimizer, server_scheduler=scheduler)
    return Measured(furthest(bench.exact(split, None, 2), bench.exact(averaged, None, 2)), bench.rounding)


def joint_step(bench: Bench) -> Measured:
    """One plain step on the equal batches of all clients, merged by rows."""
    need_plain_layers(bench)
    equal, everybody = bench.few.equal(), {"participants": len(bench.few.population.rows), **ONE_BATCH}
    joint = with_rates(bench.reference(MiniBatchSFL, **everybody, weighting="rows"), 0.1, 0.1)
    pooled = with_rates(bench.reference(Centralized, **everybody), 0.1, 0.1)
    return Measured(furthest(bench.exact(joint, equal), bench.exact(pooled, equal)), bench.rounding)


def averaged_gradients(bench: Bench) -> Measured:
    """Two rounds of one plain step on all rows of each participant."""
    gradients = with_rates(bench.reference(FedSGD, OF_SERVERS), 0.1, 0.1)
    weights = with_rates(bench.reference(FedAvg, OF_CLIENTS, **ONE_BATCH), 0.1, 0.1)
    return Measured(furthest(bench.exact(gradients, None, 2), bench.exact(weights, None, 2)), bench.rounding)
