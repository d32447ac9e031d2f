"""The metrics that callbacks are told they may watch are those that there are."""

from __future__ import annotations

import pytest

from lightning_sfl.methods import SplitMethod
from lightning_sfl.monitors import metrics_of
from tests.every_method import METHODS
from tests.tiny import build, fit


@pytest.mark.parametrize("cls", METHODS)
def test_metrics_are_those_that_a_round_gives(cls: type[SplitMethod]) -> None:
    method = fit(build(cls), limit_val_batches=1)
    assert set(metrics_of(method, "val")) == set(method.trainer.callback_metrics)
    assert set(metrics_of(method, "val")) - set(metrics_of(method, "test")) == {"val/acc", "val/loss"}
    assert set(metrics_of(method, "val", ("f1",))) - set(metrics_of(method, "val")) == {"val/f1"}
    assert metrics_of(method, "test", ("f1",)) == metrics_of(method, "test")
