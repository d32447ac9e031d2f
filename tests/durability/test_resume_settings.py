"""Resuming with what may change between two runs: more rounds, other participants, a damaged newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sfl.checkpoint import DurableCheckpointIO, newest_good
from lightning_sfl.methods import SFL, SFLV1, SplitMethod
from tests.tiny import build, differing, fit, network, rows, sgd, weights

SIZES = (5, 4, 9, 2)


def train(cls: type[SplitMethod], folder: Path, rounds: int, resume: Path | None = None, **options: Any) -> SplitMethod:
    settings = {
        "participants": 3,
        "batch_size": 4,
        "client_optimizer": sgd(0.1, 0.9),
        "server_optimizer": sgd(0.1, 0.9),
    }
    method = build(cls, network(dropout=0.2, norm=True), **{**settings, **options})
    keep = ModelCheckpoint(folder, filename="round-{epoch:06d}", auto_insert_metric_name=False, save_top_k=-1)
    return fit(method, rows(SIZES), rounds, [keep], resume, enable_checkpointing=True, plugins=DurableCheckpointIO())


@pytest.mark.parametrize("cls", [SFL, SFLV1])
def test_a_finished_run_can_go_on(cls: type[SplitMethod], tmp_path: Path) -> None:
    whole = train(cls, tmp_path / "whole", 4)
    train(cls, tmp_path / "short", 2)
    longer = train(cls, tmp_path / "short", 4, newest_good(tmp_path / "short"))
    assert differing(weights(longer), weights(whole)) == []


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("cls", [SFL, SFLV1])
@pytest.mark.parametrize("participants", [1, 2, 4])
def test_the_number_of_participants_may_change(cls: type[SplitMethod], participants: int, tmp_path: Path) -> None:
    """The checkpoint holds no slots, so it goes on like a run that had the new number from that round on."""
    train(cls, tmp_path, 1)
    first = tmp_path / "round-000000.ckpt"
    states = [weights(train(cls, tmp_path / str(i), 2, first, participants=participants)) for i in range(2)]
    assert differing(*states) == []
    same = weights(train(cls, tmp_path / "same", 2, first))
    assert differing(states[0], same) != []


@pytest.mark.parametrize("cls", [SFL, SFLV1])
def test_a_damaged_newest_checkpoint_costs_a_round_not_the_result(cls: type[SplitMethod], tmp_path: Path) -> None:
    whole = train(cls, tmp_path / "whole", 4)
    train(cls, tmp_path / "cut", 3)
    newest = newest_good(tmp_path / "cut")
    assert newest is not None
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="round-000002.ckpt is damaged"):
        resumed = train(cls, tmp_path / "cut", 4, newest)
    assert differing(weights(resumed), weights(whole)) == []
