"""Training dynamics in which methods differ besides their idea, as options: each left to the method, or matched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_sfl.core.errors import require

ClientScale = Literal["own", "joint"]
Start = Literal["merged"]


@dataclass(frozen=True)
class Dynamics:
    """What can be made the same for all methods, so that only the method differs; null leaves it to the method.

    Args:
        client_scale: a client's gradient is divided by the rows of its `own` batch (1/B_i), or by those that all
            participants have in that sweep (`joint`, 1/sum B), whatever the server's loss was averaged over.
        server_steps: steps of the server half in a round, or of each copy where a method keeps several. The uploads of
            the round fall into so many runs of consecutive ones, as equal as can be, and each step follows the mean
            gradient over all rows of its run; where there are fewer uploads than steps, every upload is a step.
        start: `merged`, every client starts a round from the merged state: branches from the master, relayed and
            asynchronous clients from the client half of the round's start.
    """

    client_scale: ClientScale | None = None
    server_steps: int | None = None
    start: Start | None = None

    def __post_init__(self) -> None:
        scales, starts = get_args(ClientScale), get_args(Start)
        known = self.client_scale is None or self.client_scale in scales
        require(known, "dynamics.client_scale", self.client_scale, f"one of {', '.join(scales)}, or null")
        enough = self.server_steps is None or self.server_steps >= 1
        require(enough, "dynamics.server_steps", self.server_steps, "an integer >= 1, or null")
        known = self.start is None or self.start in starts
        require(known, "dynamics.start", self.start, f"{', '.join(starts)}, or null")

    @property
    def matched(self) -> list[str]:
        """What is not left to the method, in words."""
        ends = {"own": "the mean over its own batch (1/B_i)", "joint": "the mean over the sweep's rows (1/sum B)"}
        said = []
        if self.client_scale is not None:
            said.append(f"a client's gradient is that of {ends[self.client_scale]}")
        if self.server_steps is not None:
            said.append(f"server steps a round {self.server_steps}")
        if self.start is not None:
            said.append("clients start from the merged state")
        return said


AS_PUBLISHED = Dynamics()
