"""The command line's commands beside training; each is imported when it is carried out."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_sfl.commands import AttackEffort, show_cuts, show_partition
from lightning_sfl.data import FederatedData
from lightning_sfl.methods.base import SplitMethod

OWN = ("cuts", "partition", "check", "leaks")


class OwnCommands:
    """What SFLCLI carries out under the names that `CommandTrainer` has; their options are told there."""

    def cuts(self, model: SplitMethod, datamodule: FederatedData) -> None:
        """Print valid cuts and refused ones."""
        show_cuts(model, datamodule)

    def partition(self, model: SplitMethod, datamodule: FederatedData, output: str) -> None:
        """Print the table of classes per client; write its picture and the manifest."""
        show_partition(datamodule, Path(output))

    def check(
        self, model: SplitMethod, datamodule: FederatedData, clients: int, rows: int, skip: list[str] | None
    ) -> None:
        """Print a line for every equivalence and self-test; exit code 1 when one fails."""
        from lightning_sfl.check_command import check_all

        sys.exit(check_all(self, clients, rows, skip or ()))

    def leaks(
        self,
        model: SplitMethod,
        datamodule: FederatedData,
        samples: int,
        attack: AttackEffort,
        output: str | None,
        **checkpoint: object,
    ) -> None:
        """Print what smashed data and updates give away."""
        from lightning_sfl.leaks_command import show_leaks

        show_leaks(self, samples, attack, output)
