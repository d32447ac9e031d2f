"""How often each side steps, on how many rows, and what that costs in bytes: three clients of 5, 4 and 9 rows."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_sfl.core.events import ClientEnd, ClientStep, CutGradient, RoundEnd, RoundStart, ServerStep
from lightning_sfl.methods import (
    SFL,
    SFLV1,
    SFLV2,
    Centralized,
    FedAvg,
    FedSGD,
    MiniBatchSFL,
    ScaffoldSFL,
    SFLProx,
    SplitLearning,
    SplitMethod,
)
from tests.every_method import ASYNCHRONOUS, METHODS
from tests.tiny import Recorder, build, fit, rows

SIZES, BATCH_SIZE, EPOCHS = (5, 4, 9), 4, 2
CLIENT_STEPS = {0: 4, 1: 2, 2: 6}  # 2 * ceil(N / 4)
CUT_ROWS = 2 * sum(SIZES)
CLIENT_BYTES = 4 * (6 * 8 + 8)  # cut behind relu1
SERVER_BYTES = 4 * (8 * 7 + 7 + 7 * 4 + 4)
CUT_TRAFFIC = {
    ("smashed", "up"): CUT_ROWS * 8 * 4,
    ("labels", "up"): CUT_ROWS * 8,
    ("cut_gradients", "down"): CUT_ROWS * 8 * 4,
    ("weights", "down"): 3 * CLIENT_BYTES,
    ("weights", "up"): 3 * CLIENT_BYTES,
}
ALL_BYTES = 3 * (CLIENT_BYTES + SERVER_BYTES)


def recorded(cls: type[SplitMethod], rounds: int = 1, **options: Any) -> Recorder:
    recorder = Recorder()
    options = {"batch_size": BATCH_SIZE, "local_epochs": EPOCHS, **options}
    fit(build(cls, **options), rows(SIZES), rounds, callbacks=[recorder])
    return recorder


@pytest.mark.parametrize("cls", [SplitLearning, SFL, SFLV2, MiniBatchSFL, SFLV1, FedAvg, ScaffoldSFL, SFLProx])
def test_client_steps(cls: type[SplitMethod]) -> None:
    recorder = recorded(cls)
    assert {client: recorder.count(ClientStep, client) for client in CLIENT_STEPS} == CLIENT_STEPS
    ends = {event.client_id: (event.steps, event.rows, event.weight) for event in recorder.of(ClientEnd)}
    assert ends == {client: (CLIENT_STEPS[client], 2 * n, float(n)) for client, n in enumerate(SIZES)}
    rows_of = [turn.rows for event in recorder.of(ClientStep) for turn in event.turns if turn.client_id == 0]
    assert rows_of == [4, 1, 4, 1]


SERVER_STEPS = {SplitLearning: 12, SFL: 12, SFLV2: 12, MiniBatchSFL: 6, FedAvg: 0, Centralized: 10, FedSGD: 1}
SERVER_STEPS |= {ScaffoldSFL: 12, SFLProx: 12}


@pytest.mark.parametrize(("cls", "steps"), SERVER_STEPS.items())
def test_server_steps(cls: type[SplitMethod], steps: int) -> None:
    assert recorded(cls).count(ServerStep) == steps


def test_server_steps_of_private_copies() -> None:
    recorder = recorded(SFLV1)
    branches = [event.branch for event in recorder.of(ServerStep)]
    assert [branches.count(slot) for slot in range(3)] == [4, 2, 6]
    assert all(event.client_ids == (event.branch,) for event in recorder.of(ServerStep))


@pytest.mark.parametrize("sizes", [(4, 4), (4, 4, 4, 4, 4)])
def test_joint_steps_do_not_depend_on_how_many_take_part(sizes: tuple[int, ...]) -> None:
    for cls, steps in ((MiniBatchSFL, 3), (SFL, 3 * len(sizes)), (SFLV2, 3 * len(sizes))):
        recorder = Recorder()
        fit(build(cls, batch_size=2, local_steps=3), rows(sizes), callbacks=[recorder])
        assert recorder.count(ServerStep) == steps


def test_rows_of_server_steps() -> None:
    assert [event.rows for event in recorded(SFL).of(ServerStep)] == [4, 4, 4, 1, 4, 4, 4, 1, 1, 4, 4, 1]
    assert [event.rows for event in recorded(MiniBatchSFL).of(ServerStep)] == [12, 9, 5, 5, 4, 1]
    assert [event.client_ids for event in recorded(MiniBatchSFL).of(ServerStep)] == [
        (0, 1, 2), (0, 1, 2), (0, 2), (0, 2), (2,), (2,),
    ]  # fmt: skip


def test_order_of_turns() -> None:
    def turns(cls: type[SplitMethod]) -> list[int]:
        return [event.client_id for event in recorded(cls).of(CutGradient)]

    assert turns(SFL) == [0, 1, 2, 0, 1, 2, 0, 2, 0, 2, 2, 2]
    assert turns(SFLV2) == turns(SplitLearning) == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2]


TRAFFIC: dict[type[SplitMethod], dict[tuple[str, str], int]] = {
    SplitLearning: CUT_TRAFFIC,
    SFL: CUT_TRAFFIC,
    SFLV1: CUT_TRAFFIC,
    SFLV2: CUT_TRAFFIC,
    MiniBatchSFL: CUT_TRAFFIC,
    SFLProx: CUT_TRAFFIC,
    ScaffoldSFL: CUT_TRAFFIC | {("control_variates", way): 3 * CLIENT_BYTES for way in ("down", "up")},
    FedAvg: {("weights", "down"): ALL_BYTES, ("weights", "up"): ALL_BYTES},
    FedSGD: {("weights", "down"): ALL_BYTES, ("gradients", "up"): ALL_BYTES},
    Centralized: {},
}


@pytest.mark.parametrize(("cls", "traffic"), TRAFFIC.items())
def test_bytes_of_a_round(cls: type[SplitMethod], traffic: dict[tuple[str, str], int]) -> None:
    assert recorded(cls, rounds=2).traffic_bytes == [traffic, traffic]


def test_every_method_that_was_written_here_is_in_the_tables() -> None:
    written_here = [cls for cls in METHODS if cls in TRAFFIC]
    assert len(written_here) == len(TRAFFIC) == 10


@pytest.mark.parametrize("cls", METHODS)
def test_one_start_and_one_end_per_round(cls: type[SplitMethod]) -> None:
    recorder = recorded(cls, rounds=3, participants=2)
    assert [event.round for event in recorder.of(RoundStart)] == [0, 1, 2]
    assert [event.round for event in recorder.of(RoundEnd)] == [0, 1, 2]
    for index, event in enumerate(recorder.of(RoundStart)):
        ended = [end.client_id for end in recorder.of(ClientEnd) if end.round == index]
        assert list(event.participants) == ended if cls not in ASYNCHRONOUS else {*event.participants} <= {*ended}
