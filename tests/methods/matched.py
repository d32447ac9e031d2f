"""Runs with matched dynamics: every method without what mixes clients' gradients, on clients of ragged sizes."""

from __future__ import annotations

from typing import Any

from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.mixing import GradMix, SmashMix
from lightning_sfl.core.replay import Replay
from lightning_sfl.methods import SFLV1, USFL, Mix2SFL, MultiSFL, SplitMethod
from tests.tiny import Recorder, build, fit, rows

COPIES = (SFLV1, MultiSFL)
NOT_MIXED: dict[type[SplitMethod], dict[str, Any]] = {
    Mix2SFL: {"smashmix": SmashMix(ratio=0.0), "gradmix": GradMix(phi=0.0)},
    MultiSFL: {"replay": Replay(proportion=0.5, most=0.9)},
    USFL: {"scale_client_gradient": True},
}
RAGGED = (5, 4, 9)


def recorded(cls: type[SplitMethod], sizes: tuple[int, ...] = RAGGED, rounds: int = 2, **options: Any) -> Recorder:
    recorder, matched = Recorder(), options.pop("matched", {})
    options = {"batch_size": 4, "local_epochs": 2, **NOT_MIXED.get(cls, {}), **options}
    fit(build(cls, dynamics=Dynamics(**matched), **options), rows(sizes), rounds, [recorder])
    return recorder
