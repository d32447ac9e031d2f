"""One process with two devices: client halves on the one, the server half on the other, and copies at the cut only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.optim import Optimizer

from lightning_sfl.core.cut import Reply, Smashed, Upload, like, parts
from lightning_sfl.core.errors import require
from lightning_sfl.core.link import Link, Serve
from lightning_sfl.core.rounds import Batch


class ApartLink(Link):
    """Copies uploads to the server half's device and cut gradients back to the clients'.

    Args:
        clients: where client halves, their data and everything else are.
        server: where the server half, its copies and its losses are.
    """

    def __init__(self, clients: torch.device, server: torch.device) -> None:
        self.clients, self.server_device = clients, server
        self.told: list[Reply] = []

    def describe(self) -> str:
        threads = f"{torch.get_num_threads()} CPU threads"
        return f"local, one process, {threads}, the server half on {self.server_device}, the client halves"

    def to_server(self, tensors: Smashed) -> Smashed:
        return like(tensors, [part.to(self.server_device) for part in parts(tensors)])

    def serve(self, batches: Sequence[Batch], uploads: Sequence[Upload], serve: Serve) -> list[Reply]:
        there = [
            replace(upload, received=self.to_server(upload.received), labels=upload.labels.to(self.server_device))
            for upload in uploads
        ]
        self.told = serve(there)
        return [replace(each, sent=tuple(part.to(self.clients) for part in each.sent)) for each in self.told]

    def show_answers(self, answers: Sequence[Reply]) -> Sequence[Reply]:
        return self.told  # with all tensors on one device


class ApartStrategy(SingleDeviceStrategy):
    """Lightning's strategy for one process, but for where the server half is.

    A whole network that is run end to end, as in evaluation, has its smashed data copied where the server half begins.

    Args:
        clients: device of the client halves, which is the Trainer's.
        server: device of the server half.
        options: of Lightning's SingleDeviceStrategy.
    """

    strategy_name = "apart"

    def __init__(self, clients: torch.device | str, server: torch.device | str, **options: Any) -> None:
        super().__init__(device=clients, **options)
        self.server_device = torch.device(server)
        self.doors: list[Any] = []

    def model_to_device(self) -> None:
        """Lightning's hook: place the halves."""
        super().model_to_device()
        method: Any = self.lightning_module
        check_apart(method)
        for half in (method.server_half, *method.server_slots):
            half.to(self.server_device)
            self.doors.append(half.register_forward_pre_hook(partial(bring, self.server_device)))
        method.link = ApartLink(self.root_device, self.server_device)

    def setup(self, trainer: Trainer) -> None:
        """Lightning's hook, which takes all optimizer state for the Trainer's device."""
        super().setup(trainer)
        for optimizer in self.optimizers:
            beside_parameters(optimizer)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Lightning's hook, with the same mistake."""
        super().load_optimizer_state_dict(checkpoint)
        for optimizer in self.optimizers:
            beside_parameters(optimizer)

    def teardown(self) -> None:
        """Lightning's hook: everything goes back to the processor, and the halves are like any others."""
        for door in self.doors:
            door.remove()
        self.doors.clear()
        if self.lightning_module is not None:
            self.lightning_module.__dict__.pop("link", None)
        super().teardown()


def bring(device: torch.device, half: nn.Module, inputs: tuple[Smashed, ...]) -> tuple[Smashed, ...]:
    """What a half is given, on this device; a function, since halves are copied with their hooks."""
    return tuple(like(given, [part.to(device) for part in parts(given)]) for given in inputs)


def check_apart(method: Any) -> None:
    """Refuse a method that does not part its halves."""
    why = method.one_device or method.one_process
    require(not why, "model", type(method).__name__, f"one device: {why}")


def beside_parameters(optimizer: Optimizer) -> None:
    """Move an optimizer's state to where its parameters are; counts of steps stay where torch wants them."""
    for parameter, state in optimizer.state.items():
        for key in state.keys() - {"step"}:
            state[key] = move_data_to_device(state[key], parameter.device)
