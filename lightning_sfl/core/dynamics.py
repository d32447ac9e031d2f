"""Training dynamics in which methods differ besides their idea, as options: each left to the method, or matched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_sfl.core.errors import require

ClientScale = Literal["method", "own", "joint"]
Start = Literal["method", "merged"]


@dataclass(frozen=True)
class Dynamics:
    """What can be made the same for all methods, so that only the method differs; `method` and 0 leave it to each.

    Args:
        client_scale: a client's gradient is divided by the rows of its `own` batch (1/B_i), or by those that all
            participants have in that sweep (`joint`, 1/sum B), whatever the server's loss was averaged over.
        server_steps: steps of the server half in a round, or of each copy where a method keeps several; 0 for as many
            as the method takes. The uploads of the round fall into so many runs of consecutive ones, as equal as can
            be, and each step follows the mean gradient over all rows of its run; where there are fewer uploads than
            steps, every upload is a step.
        start: `merged`, every client starts a round from the merged state: branches from the master, relayed and
            asynchronous clients from the client half of the round's start.
    """

    client_scale: ClientScale = "method"
    server_steps: int = 0
    start: Start = "method"

    def __post_init__(self) -> None:
        for key, known in (("client_scale", get_args(ClientScale)), ("start", get_args(Start))):
            value = getattr(self, key)
            require(value in known, f"dynamics.{key}", value, f"one of {', '.join(known)}")
        allowed = "an integer >= 1, or 0 for as many as the method takes"
        require(self.server_steps >= 0, "dynamics.server_steps", self.server_steps, allowed)

    @property
    def matched(self) -> dict[str, str | int]:
        """What is not left to the method."""
        return {key: value for key, value in vars(self).items() if value not in ("method", 0)}

    def said(self) -> str:
        """The same in words, nothing where nothing is matched."""
        scales = {"own": "the mean over its own batch (1/B_i)", "joint": "the mean over the sweep's rows (1/sum B)"}
        words = {
            "client_scale": f"a client's gradient is that of {scales.get(self.client_scale)}",
            "server_steps": f"{self.server_steps} server steps a round",
            "start": "clients start from the merged state",
        }
        return ", ".join(words[key] for key in self.matched)


AS_PUBLISHED = Dynamics()
