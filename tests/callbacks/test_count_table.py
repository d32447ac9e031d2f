"""Counts of every method over two rounds of four clients, epochs and batches: closed forms, no recorded numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lightning_sfl.callbacks import RoundRecord, UpdateCounts
from lightning_sfl.core.clock import Cell
from lightning_sfl.methods import (
    CA2FL,
    CFL,
    GAS,
    IFCA,
    SCALA,
    SFL,
    SFLV1,
    SFLV2,
    USFL,
    Centralized,
    FedAsync,
    FedAvg,
    FedBuff,
    FedSGD,
    HoloGrad,
    MiniBatchSFL,
    Mix2SFL,
    MultiSFL,
    PerFedAvg,
    Reptile,
    ScaffoldSFL,
    SFLProx,
    SplitLearning,
    SplitMethod,
)
from lightning_sfl.records.round_log import read_rounds
from tests.every_method import ASYNCHRONOUS, METHODS
from tests.tiny import build, rows, trainer

N, B, EPOCHS, ROUNDS = 4, 4, 2, 2
PASSES = ROUNDS * EPOCHS


@dataclass(frozen=True)
class Work:
    """Batches of four clients of these sizes in one epoch."""

    sizes: Sequence[int]

    @property
    def batches(self) -> list[int]:
        return [-(-size // B) for size in self.sizes]

    @property
    def whole_batches(self) -> list[int]:
        return [max(1, size // B) for size in self.sizes]

    @property
    def rows(self) -> int:
        return sum(self.sizes)


def own_steps(work: Work) -> tuple[int, int, int]:
    """The server takes a step for each of a client's."""
    each = PASSES * sum(work.batches)
    return each, each, PASSES * work.rows


def joint_steps(work: Work) -> tuple[int, int, int]:
    """One server step for the clients that still have a batch."""
    return PASSES * sum(work.batches), PASSES * max(work.batches), PASSES * work.rows


def pooled_steps(work: Work) -> tuple[int, int, int]:
    """All clients share in each of the server's batches of N * B rows, so that all run out together."""
    steps = PASSES * -(-work.rows // (N * B))
    return N * steps, steps, PASSES * work.rows


def shortest_steps(work: Work) -> tuple[int, int, int]:
    """A sweep ends with the client that has the fewest batches."""
    steps = min(work.batches)
    return PASSES * N * steps, PASSES * steps, PASSES * sum(min(size, steps * B) for size in work.sizes)


def proportional_steps(work: Work) -> tuple[int, int, int]:
    """Batches in proportion to the clients, and as many sweeps as all of them can fill."""
    parts = [size * N * B // work.rows for size in work.sizes]
    steps = min(size // part for size, part in zip(work.sizes, parts, strict=True))
    return PASSES * N * steps, PASSES * steps, PASSES * steps * sum(parts)


def whole_batch_steps(work: Work) -> tuple[int, int, int]:
    """As many as there are whole batches, on both sides of each branch."""
    steps = PASSES * sum(work.whole_batches)
    return steps, steps, B * steps


def buffered_steps(work: Work) -> tuple[int, int, int]:
    """A server step whenever N uploads have come, whosever they are."""
    arrivals = PASSES * sum(work.batches)
    return arrivals, arrivals // N, PASSES * work.rows


def own_networks(work: Work) -> tuple[int, int, int]:
    """Whole networks at the clients: the server only averages."""
    return PASSES * sum(work.batches), 0, PASSES * work.rows


def one_step(work: Work) -> tuple[int, int, int]:
    """The server alone, once a round."""
    return 0, ROUNDS, 0


# method -> (client steps, server steps, rows that clients trained on)
TABLE: dict[type[SplitMethod], Callable[[Work], tuple[int, int, int]]] = {
    SplitLearning: own_steps,
    SFL: own_steps,
    SFLV1: own_steps,
    SFLV2: own_steps,
    MiniBatchSFL: joint_steps,
    USFL: pooled_steps,
    SCALA: proportional_steps,
    Mix2SFL: shortest_steps,
    MultiSFL: whole_batch_steps,
    ScaffoldSFL: own_steps,
    SFLProx: own_steps,
    GAS: buffered_steps,
    FedAvg: own_networks,
    PerFedAvg: own_networks,
    Reptile: own_networks,
    IFCA: own_networks,
    CFL: own_networks,
    FedAsync: own_networks,
    FedBuff: own_networks,
    CA2FL: own_networks,
    FedSGD: one_step,
    HoloGrad: one_step,
    Centralized: lambda work: own_steps(Work([work.rows])),
}
ALL_AT_ONCE: dict[str, Any] = {
    "participation": "per_round",
    "cell": Cell(compute_flops=(1e9, 1e9), distance_km=(0.5, 0.5)),
}


def test_every_method_has_its_closed_form() -> None:
    assert set(TABLE) == set(METHODS)


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (6, 7, 9, 8)], ids=["even", "ragged"])
@pytest.mark.parametrize("cls", METHODS)
def test_counts_of_all_methods(tmp_path: Path, cls: type[SplitMethod], sizes: tuple[int, ...]) -> None:
    options = ALL_AT_ONCE if cls in ASYNCHRONOUS else {}
    method = build(cls, batch_size=B, local_epochs=EPOCHS, participants=N, **options)
    trainer(ROUNDS, [UpdateCounts(), RoundRecord()], default_root_dir=tmp_path).fit(method, rows(sizes))
    first, last = (record["scalars"] for record in read_rounds(tmp_path / "rounds.jsonl"))
    names = ("client_steps", "server_steps", "samples_main")
    totals = tuple(last[f"count/{name}_total"] for name in names)
    assert totals == TABLE[cls](Work(sizes))
    assert totals == tuple(first[f"count/{name}"] + last[f"count/{name}"] for name in names)
    assert last["count/participants"] == last["count/finished"] == (1 if cls is Centralized else N)
    steps = last["count/client_steps"]
    assert last.get("count/server_per_client") == (last["count/server_steps"] / steps if steps else None)


def test_where_all_clients_do_the_same_server_steps_come_apart_by_the_number_of_clients() -> None:
    """The table of the methods: n, n, 1, 1, 1, 1, 1 for each step that every client takes."""
    work = Work((B,) * N)
    per_step = {cls: TABLE[cls](work)[1] / PASSES for cls in (SFL, MultiSFL, USFL, GAS, Mix2SFL, MiniBatchSFL, SCALA)}
    assert list(per_step.values()) == [N, N, 1, 1, 1, 1, 1]
