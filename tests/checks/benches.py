"""Benches on five clients of a small network, and what `check` finds on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lightning_sfl.checks.bench import Bench
from lightning_sfl.checks.finding import Finding, examine
from lightning_sfl.checks.lines import CHECKS
from lightning_sfl.methods import SplitMethod
from tests.tiny import build, network, rows

SIZES = (9, 12, 7, 10, 8)
NAMES = [check.name for check in CHECKS]


def bench(cls: type[SplitMethod], net: Any = network, cut_layer: str = "relu1", **options: Any) -> Bench:
    """A bench on five clients; every method is made anew, network and all."""
    given = {"batch_size": 4, "participants": 3, **options}

    def make(changes: Mapping[str, Any]) -> SplitMethod:
        return build(cls, net(), cut_layer, **{**given, **changes})

    return Bench(make, rows(SIZES), precision="32-true", accelerator="cpu")


def findings(made: Bench, names: Collection[str] = NAMES) -> dict[str, Finding]:
    made.grow()
    chosen = [check for check in CHECKS if check.name in names]
    return {finding.check.name: finding for finding in examine(made, chosen)}


def states(found: Mapping[str, Finding]) -> dict[str, str]:
    return {name: finding.state for name, finding in found.items()}


def failed(found: Mapping[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.state == "failed"}
