"""Simulated time of asynchronous clients: how long they compute and send, and who is ready next. Nothing waits.

The radio cell is that of J. Yang, Y. Liu, "GAS: Generative Activation-Aided Asynchronous Split Federated Learning",
AAAI 2025, as its released code has it: path loss 128.1 + 37.6 log10(km) dB, 10 MHz, 0.2 W, noise of -174 dBm/Hz.
Computing at the server and everything sent down cost no time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_sfl.core.cut import num_bytes, parts
from lightning_sfl.core.errors import require
from lightning_sfl.core.evaluation import evaluated
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.state import num_parameters

BANDWIDTH_HZ, POWER_W, NOISE_W_PER_HZ = 10e6, 0.2, 10 ** (-17.4) * 1e-3


@dataclass(frozen=True)
class Cell:
    """How fast clients compute, and how far they are from the server.

    Args:
        compute_flops: floating-point operations per second of a client, drawn between these bounds.
        distance_km: distance of a client, drawn between these bounds.
        position: draw the distance itself evenly, or places evenly over the area.
        share_bandwidth: the clients in the slots share the 10 MHz, instead of having them each.
        constants: operations and bits of this cut and network, or those of the AlexNet in the paper.
    """

    compute_flops: tuple[float, float] = (1e9, 1e10)
    distance_km: tuple[float, float] = (0.1, 1.0)
    position: Literal["radius", "area"] = "radius"
    share_bandwidth: bool = False
    constants: Literal["auto", "alexnet"] = "auto"

    def __post_init__(self) -> None:
        for key, (least, most) in {"compute_flops": self.compute_flops, "distance_km": self.distance_km}.items():
            require(0 < least <= most < math.inf, f"cell.{key}", [least, most], "two numbers > 0 in ascending order")
        require(self.position in ("radius", "area"), "cell.position", self.position, "radius or area")
        require(self.constants in ("auto", "alexnet"), "cell.constants", self.constants, "auto or alexnet")


@dataclass(frozen=True)
class Costs:
    """flops: of one pass of one row through the client half; bits: of what a row leaves at the cut, of the half."""

    flops: float
    row_bits: float
    model_bits: float


@dataclass(frozen=True)
class Durations:
    """Seconds of one client: a pass forward (or backward), sending a batch up, sending its half up."""

    process_s: float
    send_batch_s: float
    send_model_s: float


CELL = Cell()
ALEXNET = Costs(5_603_328, 64 * 8 * 8 * 32, 19_392 * 32)


def rate_bps(distance_km: float, bandwidth_hz: float = BANDWIDTH_HZ) -> float:
    """Bits per second from this distance."""
    gain = 10 ** (-(128.1 + 37.6 * math.log10(distance_km)) / 10)
    return bandwidth_hz * math.log2(1 + POWER_W * gain / (bandwidth_hz * NOISE_W_PER_HZ))


def costs_of(client_half: nn.Module, row: Tensor) -> Costs:
    """What one row (1, ...) costs, batches being processed in parallel; at least two operations per parameter."""
    where = next((parameter.device for parameter in client_half.parameters()), row.device)
    with FlopCounterMode(display=False) as counter:
        smashed = evaluated(client_half, row.to(where))
    flops = max(counter.get_total_flops(), 2 * num_parameters(client_half))
    return Costs(float(flops), 8.0 * num_bytes(parts(smashed)), 8.0 * num_bytes(client_half.parameters()))


def durations(cell: Cell, costs: Costs, seed: int, client: int, rows: int, sharing: int) -> Durations:
    """Of a client whose batches have so many rows, in a cell of so many active clients."""
    draws = stream(seed, "cell", client=client)
    compute = draws.uniform(*cell.compute_flops)
    near, far = cell.distance_km
    distance = draws.uniform(near, far) if cell.position == "radius" else math.sqrt(draws.uniform(near**2, far**2))
    rate = rate_bps(distance, BANDWIDTH_HZ / (sharing if cell.share_bandwidth else 1))
    return Durations(costs.flops / compute, costs.row_bits * rows / rate, costs.model_bits / rate)


class Clock:
    """When the client in each slot is ready: its next activations have arrived at the server."""

    def __init__(self) -> None:
        self.ready_s: defaultdict[int, float] = defaultdict(float)

    def next(self, slots: Iterable[int]) -> int:
        """The slot that is ready first; of several, the one listed first."""
        return min(slots, key=lambda slot: self.ready_s[slot])

    def forward(self, slot: int, takes: Durations) -> None:
        """The client passes its next batch forward and sends it."""
        self.ready_s[slot] += takes.process_s + takes.send_batch_s

    def backward(self, slot: int, takes: Durations) -> None:
        """The client passes a gradient back."""
        self.ready_s[slot] += takes.process_s

    def hand_in(self, slot: int, takes: Durations) -> float:
        """The client sends its half; the time at which it has arrived."""
        self.ready_s[slot] += takes.send_model_s
        return self.ready_s[slot]
