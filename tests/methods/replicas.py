"""HoloGrad on the small network, and a watcher that keeps what it sends."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_sfl.core.events import RoundEnd, ScalarsSent, ServerBackward
from lightning_sfl.core.holograd.projection import flat
from lightning_sfl.core.holograd.synthesis import Message
from lightning_sfl.methods import HoloGrad, SplitMethod
from tests.tiny import Recorder, network

SIZE = 151  # parameters of the small network
SIZES = (5, 4, 9, 2)


def holograd(**options: Any) -> HoloGrad:
    """Random directions, unlike the exact settings that comparisons with other methods take."""
    net = options.pop("net", None)
    return HoloGrad(net or network(), "relu1", **{"num_scalars": 40, "scale": "mmse", **options})


class Messages(Recorder):
    """Keeps each round's message, gradient as stepped with, and scalars as they arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.estimates: list[Tensor] = []
        self.sent: list[list[ScalarsSent]] = []
        self.own: list[dict[str, float]] = []

    def on_round_start(self, module: SplitMethod, event: Any) -> None:
        self.sent.append([])

    def on_scalars_sent(self, module: SplitMethod, event: ScalarsSent) -> None:
        self.sent[-1].append(event)

    def on_server_backward(self, module: Any, event: ServerBackward) -> None:
        super().on_server_backward(module, event)
        parameters = list(module.client_half.parameters()) + list(module.server_half.parameters())
        self.estimates.append(flat([p.grad for p in parameters], parameters))

    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        super().on_round_end(module, event)
        self.messages.append(module.message)
        self.own.append(event.scalars)
