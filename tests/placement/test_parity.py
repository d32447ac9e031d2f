"""Two and three processes train what one does: bitwise in `gathered` and `roles`, within 1e-6 in `sharded`, which in
double precision is 1e-13: sums are added up in another order, and that is all.

Compared are final states, the states in which every client started and ended as watchers were shown them, the order of
events, traffic by kind, metrics in every process and the Trainer's count of optimizer steps. Runs have ragged batches,
fewer participants than clients, momentum, and four rounds.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.placement.processes import differences, trained

EXACT = 0.0
CLOSE = 1e-6
IN_DOUBLE = 1e-13
FEW = [
    "SFL:gathered:dropout:norm",
    "USFL:roles:rich:dropout",
    "MultiSFL:roles:rich",
    "GAS:gathered:rich:dropout",
    "FedSGD:roles:norm",
    "MiniBatchSFL:sharded",
    "SFLV1:sharded:dropout:norm:double",
]
METHODS = ("SFL", "SFLV1", "SFLV2", "SplitLearning", "MiniBatchSFL", "USFL", "Mix2SFL", "MultiSFL", "GAS", "FedAvg")
MATRIX = [f"{name}:{mode}:dropout:norm:rich" for name in (*METHODS, "FedSGD") for mode in ("gathered", "roles")]
MATRIX += [f"{name}:{mode}:adam" for name in METHODS for mode in ("gathered", "roles")]
SHARDED = ["MiniBatchSFL:sharded", "USFL:sharded", "SFLV1:sharded:dropout", "FedAvg:sharded:dropout"]
MATRIX += SHARDED
MATRIX += ["SFL:gathered:bf16", "USFL:roles:bf16", "FedAvg:roles:bf16"]
MATRIX += [f"{case}:double" for case in SHARDED]
PRIVATE = [f"{name}:{mode}:local:noised:by_rows" for name in ("SFL", "GAS", "SFLV1") for mode in ("gathered", "roles")]
PRIVATE += ["FedAvg:gathered:central:by_rows", "FedAvg:roles:central", "SFL:roles:masked", "SFLV1:gathered:central"]
PRIVATE += ["SFL:gathered:secure", "SFL:roles:secure", "FedSGD:roles:masked", "MultiSFL:roles:rich:noised:by_rows"]
MATRIX += PRIVATE


def compare(processes: int, cases: list[str], folder: Path) -> None:
    alone = trained(1, cases, folder)[0]
    together = trained(processes, cases, folder)
    for case in cases:
        tolerance = (IN_DOUBLE if ":double" in case else CLOSE) if ":sharded" in case else EXACT
        first = together[0][case]
        assert "error" not in first, first
        assert differences(alone[case], first, tolerance) == [], case
        for other in together[1:]:
            assert differences(first["metrics"], other[case]["metrics"]) == [], case
            assert first["steps"] == other[case]["steps"], case
            assert other[case]["events"] == [], "events are told in the first process only"


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    compare(2, FEW, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_every_method_in_every_mode(processes: int, tmp_path: Path) -> None:
    compare(processes, MATRIX, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["SFL:{}:norm", "USFL:{}:rich", "MultiSFL:{}:rich", "MultiSFL:{}:adam", "GAS:{}:rich"]
)
def test_a_checkpoint_of_two_goes_on_in_one_and_then_in_three(method: str, tmp_path: Path) -> None:
    alone, two, one, three = (str(tmp_path / f"{name}.ckpt") for name in ("alone", "two", "one", "three"))
    whole = trained(1, [f"{method.format('local')},rounds=6,save={alone}"], tmp_path)[0]
    trained(2, [f"{method.format('gathered')},rounds=2,save={two}"], tmp_path)
    trained(1, [f"{method.format('local')},rounds=4,resume={two},save={one}"], tmp_path)
    last = trained(3, [f"{method.format('roles')},rounds=6,resume={one},save={three}"], tmp_path)[0]
    (straight,), (resumed,) = whole.values(), last.values()
    assert differences(straight["weights"], resumed["weights"]) == []
    saved = [torch.load(path, weights_only=True) for path in (alone, three)]
    assert differences(*saved) == []
