"""What the loop tells those who watch it: one record per event, each delivered to the callbacks' method of the same
name.

A callback that defines `on_cut_gradient(module, event)` gets every `CutGradient`; one that does not define it costs
nothing. Modules and gradients in the records are live: watchers read them, never write, and copy what they want to
keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from lightning_sfl.core.holograd.directions import Directions
from lightning_sfl.core.rounds import Batch
from lightning_sfl.core.server_groups import Labels


@dataclass(frozen=True)
class RoundStart:
    """Before any training of the round: the global halves are what every participant is about to start from."""

    handler: ClassVar[str] = "on_round_start"
    round: int
    participants: tuple[int, ...]
    client_half: nn.Module
    server_half: nn.Module


@dataclass(frozen=True)
class ClientStart:
    """A client has been loaded into its slot; server_half is its private copy where the method has one."""

    handler: ClassVar[str] = "on_client_start"
    round: int
    slot: int
    client_id: int
    client_half: nn.Module
    server_half: nn.Module | None


@dataclass(frozen=True)
class CutGradient:
    """What one client is about to backpropagate.

    raw, sent: one tensor per part of the cut, each (rows, ...): as the server's backward left it, and as it was sent
    back. logits, logits_gradient: (rows, ..., classes) of these rows at the server; labels: what they were compared
    with. rows: the client's own rows in this step; replayed: further rows of others mixed into its loss.
    """

    handler: ClassVar[str] = "on_cut_gradient"
    round: int
    slot: int
    client_id: int
    raw: tuple[Tensor, ...]
    sent: tuple[Tensor, ...]
    logits: Tensor
    logits_gradient: Tensor
    labels: Tensor
    rows: int
    replayed: int = 0


class Turn(NamedTuple):
    """One client's part in one local step: its half, its private server copy or None, its number of rows, and of
    further rows of others mixed into its loss.
    """

    slot: int
    client_id: int
    client_half: nn.Module
    server_half: nn.Module | None
    rows: int
    replayed: int = 0


@dataclass(frozen=True)
class ClientBackward:
    """Gradients of all active clients stand in `.grad`, before clipping and before the step."""

    handler: ClassVar[str] = "on_client_backward"
    round: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class ClientStep:
    """All active clients have taken one optimizer step."""

    handler: ClassVar[str] = "on_client_step"
    round: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class ServerBackward:
    """Gradients of one server copy stand in `.grad`, before clipping and before its step; fields as in `ServerStep`."""

    handler: ClassVar[str] = "on_server_backward"
    round: int
    branch: int
    client_ids: tuple[int, ...]
    rows: int
    server_half: nn.Module
    labels: Labels = ()
    synthetic: int = 0


@dataclass(frozen=True)
class ServerStep:
    """One server copy has taken one optimizer step on rows of these clients.

    labels: of all rows that it learnt from, replayed, generated and mixed ones too, each tensor with the share of a row
    that its entries count for: 1, or a label's share in a mix. synthetic: rows that no client has, generated (among
    `rows`) or mixed (besides).
    """

    handler: ClassVar[str] = "on_server_step"
    round: int
    branch: int
    client_ids: tuple[int, ...]
    rows: int
    server_half: nn.Module
    labels: Labels = ()
    synthetic: int = 0


@dataclass(frozen=True)
class ScalarsSent:
    """A client's scalars have arrived: `scalars` along the basis' rows, then along the directions.

    The halves hold the parameters at which they should have been computed, on these rows of the population.
    """

    handler: ClassVar[str] = "on_scalars_sent"
    round: int
    batch: Batch
    client_half: nn.Module
    server_half: nn.Module
    directions: Directions
    scalars: Tensor


@dataclass(frozen=True)
class ClientEnd:
    """A client is done for this round, before aggregation.

    rows: rows it trained on, counting repetitions; steps: optimizer steps of its half; weight: its aggregation weight,
    any positive scale; finished: False when it was dropped; missed: merges since it got the weights that it started
    from, its staleness, 0 where clients wait for each other.
    """

    handler: ClassVar[str] = "on_client_end"
    round: int
    slot: int
    client_id: int
    client_half: nn.Module
    server_half: nn.Module | None
    rows: int
    steps: int
    weight: float
    finished: bool = True
    missed: int = 0


@dataclass(frozen=True)
class RoundEnd:
    """The halves have been merged. traffic_bytes maps (kind, direction) to what crossed in this round.

    scalars: what the method itself keeps count of, such as its simulated time, by the tag under which it is recorded.
    """

    handler: ClassVar[str] = "on_round_end"
    round: int
    client_half: nn.Module
    server_half: nn.Module
    traffic_bytes: dict[tuple[str, str], int]
    scalars: dict[str, float] = field(default_factory=dict)


Event = (
    RoundStart
    | ClientStart
    | CutGradient
    | ClientBackward
    | ClientStep
    | ServerBackward
    | ServerStep
    | ScalarsSent
    | ClientEnd
    | RoundEnd
)
