"""Where the halves are trained when there are several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_sfl.core.errors import require

Mode = Literal["auto", "local", "sharded", "gathered", "roles"]


@dataclass(frozen=True)
class Placement:
    """Which process holds which half.

    Args:
        mode: `local`, one process, on one device or with each half on a GPU of its own; `sharded`, each process has
            its clients and a replica of the server half for their rows; `gathered`, each has its clients, and the
            server half on the uploads of all; `roles`, rank 0 has the server half and the others have clients; `auto`,
            the first of local, sharded and gathered that is exact.
        timeout_s: seconds that a process waits for another one before it gives up.
    """

    mode: Mode = "auto"
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        require(self.mode in get_args(Mode), "placement.mode", self.mode, f"one of {', '.join(get_args(Mode))}")
        waits = isinstance(self.timeout_s, int | float) and 0 < self.timeout_s < float("inf")
        require(waits, "placement.timeout_s", self.timeout_s, "a finite number of seconds > 0")
