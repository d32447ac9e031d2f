"""The contract of every method holds with its dynamics matched: repeat, resume, watching, a complete story, NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_sfl.core import events
from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.errors import NonFiniteError
from lightning_sfl.methods import CFL, IFCA, SplitMethod
from tests.conformance.test_contract import SIZES, LastServer, build_cut, checkpointed, poisoned, rich
from tests.every_method import CUT_METHODS, METHODS
from tests.tiny import Recorder, build, differing, fit, rows, weights, whole

SINGLE: dict[str, dict[str, Any]] = {
    "own": {"client_scale": "own"},
    "joint": {"client_scale": "joint", "server_steps": 2},
    "start": {"start": "merged"},
    "all": {"client_scale": "own", "server_steps": 3, "start": "merged"},
}
CASES = [
    pytest.param(cls, matched, id=f"{cls.__name__}-{name}")
    for cls in METHODS
    for name, matched in SINGLE.items()
    if cls in CUT_METHODS or (name == "start" and cls not in (CFL, IFCA))
]


@pytest.mark.parametrize(("cls", "matched"), CASES)
def test_resume_is_exact_and_watching_changes_nothing(
    cls: type[SplitMethod], matched: dict[str, Any], tmp_path: Path
) -> None:
    """The run that is resumed is not watched, the whole one is."""
    dynamics, keep = Dynamics(**matched), checkpointed(tmp_path)
    wanted = weights(fit(rich(cls, dynamics=dynamics), rows(SIZES), 4, [Recorder(), keep], enable_checkpointing=True))
    again = fit(
        rich(cls, dynamics=dynamics),
        rows(SIZES),
        4,
        [checkpointed(tmp_path)],
        resume=tmp_path / "epoch=1.ckpt",
        enable_checkpointing=True,
    )
    assert differing(weights(again), wanted) == []


@pytest.mark.parametrize(("cls", "matched"), [case for case in CASES if str(case.id).endswith("-all")])
def test_a_run_repeats_and_its_story_is_complete(cls: type[SplitMethod], matched: dict[str, Any]) -> None:
    first, second = Recorder(), Recorder()
    one, other = (
        whole(fit(rich(cls, dynamics=Dynamics(**matched)), rows(SIZES), 2, [each])) for each in (first, second)
    )
    assert differing(one, other) == []
    assert first.losses == second.losses
    assert first.traffic_bytes == second.traffic_bytes
    for event in first.of(events.ClientEnd):
        visits = [e for e in first.of(events.ClientEnd) if e.client_id == event.client_id]
        assert sum(e.steps for e in visits) == first.count(events.ClientStep, event.client_id)
    assert first.count(events.ServerStep) == first.count(events.ServerBackward)


@pytest.mark.parametrize("cls", CUT_METHODS)
def test_nan_rows_stop_the_run_before_they_reach_the_weights(cls: type[SplitMethod]) -> None:
    last = LastServer()
    method = build(cls, batch_size=4, participants=4, dynamics=Dynamics(server_steps=2, client_scale="own"))
    with pytest.raises(NonFiniteError, match=f" in {method.method_name}, round 0, client"):
        fit(method, poisoned(2), 3, [last])
    assert differing(weights(method.client_half), weights(build_cut(cls).client_half)) == []
    assert differing(weights(method.server_half), last.server) == []
    assert all(bool(p.isfinite().all()) for p in method.parameters())
