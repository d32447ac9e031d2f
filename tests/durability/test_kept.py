"""Which checkpoints stay: the newest two and the best, resumed or not, killed or not, moved or not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_sfl import trainer
from lightning_sfl.checkpoint import DurableCheckpointIO, newest_good, verify
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.methods import SFL
from lightning_sfl.trainer import KeepBest, KeepLast
from tests.tiny import build, rows

QUIET: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu"}
SCORES = [0.5, 0.9, 0.7, 0.8, 0.6, 0.95, 0.1, 0.2]


class Scored(SFL):
    """Its validation accuracy is what the list says, so that the best round is known beforehand."""

    name = "scored"

    def on_validation_epoch_end(self) -> None:
        self.log("val/acc", SCORES[self.current_epoch], logger=False)


def run(folder: Path, rounds: int, resume: Path | None = None, **options: Any) -> L.Trainer:
    """So many rounds, counted from the first."""
    made = trainer(rounds, logger=False, default_root_dir=str(folder), **QUIET, **options)
    made.fit(build(Scored, batch_size=4), rows(), ckpt_path=resume)
    return made


def kept(folder: Path) -> list[str]:
    return sorted(path.stem for path in checkpoints(folder).iterdir())


def checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"


def expected(rounds: int) -> list[str]:
    best = max(range(rounds), key=SCORES.__getitem__)
    return [f"best-{best:06d}", *(f"round-{done:06d}" for done in range(max(0, rounds - 2), rounds))]


@pytest.mark.parametrize("rounds", [1, 3, 8])
def test_the_newest_two_and_the_best(rounds: int, tmp_path: Path) -> None:
    run(tmp_path, rounds)
    assert kept(tmp_path) == expected(rounds)


@pytest.mark.parametrize(("first", "more"), [(2, 0), (2, 1), (2, 2), (3, 1), (5, 1), (6, 2)])
def test_the_file_resumed_from_goes_like_the_others(first: int, more: int, tmp_path: Path) -> None:
    run(tmp_path, first)
    newest = newest_good(checkpoints(tmp_path))
    assert newest is not None
    assert newest.stem == f"round-{first - 1:06d}"
    run(tmp_path, first + more, newest)
    assert kept(tmp_path) == expected(first + more)


def test_resumed_again_and_again(tmp_path: Path) -> None:
    for rounds in (1, 2, 3, 4, 6, 7):
        run(tmp_path, rounds, newest_good(checkpoints(tmp_path)))
        assert kept(tmp_path) == expected(rounds)


class Killed(RuntimeError):
    pass


@pytest.mark.parametrize("when", [1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13])
def test_a_kill_between_two_file_operations_leaves_nothing_behind(
    when: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at its n-th writing or removing of a file, resumed, and tidy all the same."""
    done = 0

    def dying(own: Any) -> Any:
        def operation(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == when:
                raise Killed
            return own(self, *arguments, **options)

        return operation

    with monkeypatch.context() as patch:
        for name in ("save_checkpoint", "remove_checkpoint"):
            patch.setattr(DurableCheckpointIO, name, dying(getattr(DurableCheckpointIO, name)))
        with pytest.raises(Killed):
            run(tmp_path, 6)
    newest = newest_good(checkpoints(tmp_path)) if checkpoints(tmp_path).exists() else None
    run(tmp_path, 6, newest)
    wanted = expected(6)
    if newest is not None and newest.stem == "best-000005":  # killed between the two files of the last round
        wanted = ["best-000005", "round-000003", "round-000004"]
    assert kept(tmp_path) == wanted


def test_a_damaged_newest_is_written_anew_and_not_beside(tmp_path: Path) -> None:
    run(tmp_path, 4)
    newest = checkpoints(tmp_path) / "round-000003.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    run(tmp_path, 4, newest_good(checkpoints(tmp_path)))
    assert kept(tmp_path) == expected(4)
    assert verify(newest) is None


def test_a_run_that_moved_keeps_its_best(tmp_path: Path) -> None:
    """Round 1 was the best of four, and stays so until round 5 is better."""
    run(tmp_path / "here", 4)
    shutil.move(tmp_path / "here", tmp_path / "there")
    for rounds in (5, 6):
        run(tmp_path / "there", rounds, newest_good(checkpoints(tmp_path / "there")))
        assert kept(tmp_path / "there") == expected(rounds)


def test_another_number_from_now_on(tmp_path: Path) -> None:
    def train(rounds: int, keep: int) -> None:
        folder = checkpoints(tmp_path)
        made = L.Trainer(
            max_epochs=rounds, callbacks=[KeepLast(keep)], plugins=DurableCheckpointIO(), logger=False,
            num_sanity_val_steps=0, enable_model_summary=False, default_root_dir=tmp_path, **QUIET,
        )  # fmt: skip
        made.fit(build(SFL), rows(), ckpt_path=newest_good(folder))

    train(3, keep=-1)
    assert kept(tmp_path) == ["round-000000", "round-000001", "round-000002"]
    train(4, keep=3)
    assert kept(tmp_path) == ["round-000001", "round-000002", "round-000003"]
    train(5, keep=1)
    assert kept(tmp_path) == ["round-000004"]


def test_rounds_without_an_evaluation_are_saved_too(tmp_path: Path) -> None:
    run(tmp_path, 3, check_val_every_n_epoch=2)
    assert kept(tmp_path) == ["best-000001", "round-000001", "round-000002"]


def test_the_best_of_the_python_trainer_is_its_best(tmp_path: Path) -> None:
    made = run(tmp_path, 4)
    assert made.checkpoint_callback is not None
    assert Path(made.checkpoint_callback.best_model_path).stem == "best-000001"  # type: ignore[attr-defined]
    best = torch.load(checkpoints(tmp_path) / "best-000001.ckpt", weights_only=True)
    assert best["epoch"] == 1


def test_how_many_is_checked() -> None:
    for keep in (0, -2):
        with pytest.raises(ConfigError, match=f"checkpoints.keep={keep} is not allowed"):
            KeepLast(keep)
    assert KeepBest().save_top_k == 1
