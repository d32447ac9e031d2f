"""Every line of `check` holds for the methods that come along."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_sfl.backbones import CharLSTM
from lightning_sfl.checks.few import few_rows
from lightning_sfl.methods import GAS, SFL, MiniBatchSFL, SplitMethod
from tests.checks.benches import NAMES, SIZES, bench, failed, findings, states
from tests.equivalence.test_one_client import forked
from tests.every_method import METHODS
from tests.tiny import Rows, network, sgd, stretches


@pytest.mark.parametrize("cls", [pytest.param(cls, marks=() if cls is GAS else pytest.mark.slow) for cls in METHODS])
def test_nothing_fails_for_the_methods_that_come_along(cls: type[SplitMethod]) -> None:
    found = findings(bench(cls, client_optimizer=sgd(0.1, 0.9), server_optimizer=sgd(0.1, 0.9)))
    assert failed(found) == set(), [finding.line() for finding in found.values() if finding.state == "failed"]
    assert list(states(found).values()).count("ok") >= 13
    for finding in found.values():
        assert bool(finding.difference) == (finding.state == "ok")
        assert finding.reason or finding.state == "ok"


def test_lines_that_apply_to_minibatch_sfl() -> None:
    """All but the fingerprints, as these data were not dealt by a partition."""
    found = states(findings(bench(MiniBatchSFL)))
    assert found == {**dict.fromkeys(NAMES, "ok"), **dict.fromkeys(("engine", "fingerprints"), "not applicable")}


def rich() -> nn.Module:
    return network(dropout=0.3, norm=True)


@pytest.mark.parametrize("cls", [SFL, pytest.param(MiniBatchSFL, marks=pytest.mark.slow)])
def test_layers_that_draw_or_couple_rows_leave_three_lines_without_meaning(cls: type[SplitMethod]) -> None:
    found = findings(bench(cls, rich))
    assert failed(found) == set()
    left = {name for name, state in states(found).items() if state == "not applicable"}
    assert left == {"joint_step", "denominator", "relabelling", "engine", "fingerprints"}
    assert "batch normalisation" in found["joint_step"].reason


def test_two_tensors_may_cross() -> None:
    found = findings(bench(MiniBatchSFL, forked, "lower"))
    expected = {**dict.fromkeys(NAMES, "ok"), **dict.fromkeys(("engine", "fingerprints"), "not applicable")}
    assert states(found) == expected


def test_sequences_of_characters() -> None:
    """Inputs are codes, every position has a label: nothing but the NaN in the inputs is left out."""
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(0, 7, (sum(SIZES), 6), generator=draw)
    data = Rows(text[:, :-1].clone(), text[:, 1:].clone(), stretches(SIZES), num_classes=7)

    def net() -> nn.Module:
        torch.default_generator.manual_seed(3)
        return CharLSTM(7, embedding=3, hidden=5)

    made = bench(MiniBatchSFL, net, "lstm1")
    made.data, made.few = data, few_rows(data, 4, 8)
    found = findings(made)
    assert states(found) == {
        **dict.fromkeys(NAMES, "ok"),
        **dict.fromkeys(("engine", "fingerprints"), "not applicable"),
    }
    assert found["finite"].reason == "NaN in the loss"
    assert found["denominator"].reason.startswith("batches of 40, 35, 35, losses divided by 110, 110, 110")


def test_clients_in_one_stroke_are_clients_one_after_another() -> None:
    found = findings(bench(MiniBatchSFL, client_engine="stacked"))
    assert failed(found) == set()
    assert found["engine"].state == "ok"


def test_own_batch_norm_layers_of_the_clients_are_no_failure() -> None:
    assert failed(findings(bench(SFL, rich, bn_buffers="local"))) == set()


def test_the_denominators_are_told() -> None:
    told = {cls: findings(bench(cls), ["denominator"])["denominator"].reason for cls in (SFL, MiniBatchSFL)}
    assert told[SFL] == "batches of 8, 7, 7, losses divided by 8, 7, 7"
    assert "divided by 22, 22, 22, then gradients times 2.75, 3.14, 3.14" in told[MiniBatchSFL]
