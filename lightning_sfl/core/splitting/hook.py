"""Cutting any model with a forward hook: no tracing, at the price of a front pass on a dummy input in the server half.

A half here holds the whole model unregistered and shares its registries (modules, parameters, buffers), from which the
other side's state was taken out. So the names stay the model's, and moving or swapping tensors acts on what is used.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.core.errors import DataError
from lightning_sfl.core.splitting.crossing import leaves, pack, refill, unpack
from lightning_sfl.core.splitting.observe import Cut


class _Reached(BaseException):
    """Stops the client's forward at the cut; a BaseException, so that a model's own error handling lets it pass."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class HookHalf(nn.Module):
    """Base of both halves: `whole` is a private copy of the model, whose registries this module shares."""

    def __init__(self, whole: nn.Module, cut_layer: str, used: tuple[int, ...]) -> None:
        super().__init__()
        self.held = (whole,)  # in a tuple, so that it is not registered as a submodule
        self.cut_layer = cut_layer
        self.used = used
        for registry in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[registry] = whole.__dict__[registry]

    @property
    def whole(self) -> nn.Module:
        return self.held[0]

    def train(self, mode: bool = True) -> HookHalf:
        super().train(mode)
        self.whole.training = mode
        return self


class ClientByHook(HookHalf):
    """Runs the model up to the cut and returns that module's output."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        hook = self.whole.get_submodule(self.cut_layer).register_forward_hook(_stop)
        try:
            self.whole(x)
        except _Reached as reached:
            tensors = leaves(reached.output)
            return pack([tensors[i] for i in self.used])
        finally:
            hook.remove()
        raise DataError(f"the forward did not reach cut_layer={self.cut_layer!r} on this input")


class ServerByHook(HookHalf):
    """Runs the whole model on a dummy input and replaces the cut module's output by what was received.

    The front's tensors are non-persistent buffers, neither trained nor saved; its modules stay in eval mode, its pass
    needs no graph and leaves the generators as they were. Inputs must have the example's sizes, but for the rows.
    """

    def __init__(self, whole: nn.Module, cut: Cut, example: Tensor) -> None:
        super().__init__(whole, cut.name, cut.used)
        self.front = tuple(name for name, phase in cut.phases.items() if phase == "client")
        self.sizes = tuple(example.shape[1:])
        self.dtype = example.dtype
        self.fill = 0

    def train(self, mode: bool = True) -> ServerByHook:
        super().train(mode)
        for name in self.front:
            self.whole.get_submodule(name).training = False
        return self

    def _dummy(self, like: Tensor) -> Tensor:
        dtype = self.dtype
        if dtype.is_floating_point:  # follow the weights, which may have been converted since
            dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), like.dtype)
        return torch.full((like.shape[0], *self.sizes), self.fill, dtype=dtype, device=like.device)

    def forward(self, received: Tensor | tuple[Tensor, ...]) -> Any:
        tensors = unpack(received)
        devices = [None, tensors[0].device] if tensors[0].is_cuda else [None]
        draws = [_draws(device) for device in devices]
        grad = torch.is_grad_enabled()
        swapped = False

        def swap(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            nonlocal swapped
            swapped = True
            torch.set_grad_enabled(grad)
            for device, state in zip(devices, draws, strict=True):
                _set_draws(device, state)
            own = leaves(output)
            for i, tensor in zip(self.used, tensors, strict=True):
                if own[i].shape != tensor.shape:
                    raise DataError(f"received {tuple(tensor.shape)}, but this cut is made for inputs of {self.sizes}")
                own[i] = tensor
            return refill(output, iter(own))

        hook = self.whole.get_submodule(self.cut_layer).register_forward_hook(swap)
        try:
            torch.set_grad_enabled(False)
            output = self.whole(self._dummy(tensors[0]))
        finally:
            torch.set_grad_enabled(grad)
            hook.remove()
        if not swapped:
            raise DataError(f"the forward did not reach cut_layer={self.cut_layer!r} on the dummy input")
        return output


def by_hook(model: nn.Module, cut: Cut, example: Tensor) -> tuple[nn.Module, nn.Module]:
    """(client half, server half), each holding a copy of `model` of its own."""
    front, back = copy.deepcopy(model), copy.deepcopy(model)
    _take_out(front, cut, "client")
    _take_out(back, cut, "server")
    return ClientByHook(front, cut.name, cut.used), ServerByHook(back, cut, example)


def _take_out(whole: nn.Module, cut: Cut, side: str) -> None:
    """Take the other side's state out of `whole`: the client drops it, the server keeps it untrained and unsaved."""
    mine = set(cut.keys(side))
    for name, module in whole.named_modules():
        prefix = f"{name}." if name else ""
        if not any(prefix + key in mine for key in (*module._parameters, *module._buffers)):
            # Loading a batch norm without its version adds a key for it, which would then be unexpected here.
            module._load_from_state_dict = _load_nothing  # type: ignore[method-assign]
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and prefix + key not in mine:
                _replace(module, key, None if side == "client" else parameter.detach())
        for key, buffer in list(module._buffers.items()):
            if buffer is not None and prefix + key in cut.sides and prefix + key not in mine:
                dropped = side == "client" and cut.phases.get(name) != "both"
                _replace(module, key, None if dropped else buffer)


def _replace(module: nn.Module, key: str, tensor: Tensor | None) -> None:
    """Turn a parameter or buffer into an unsaved buffer, or into None."""
    if tensor is not None:
        delattr(module, key)
        module.register_buffer(key, tensor, persistent=False)
    setattr(module, key, tensor)  # recurrent layers keep a list of their weights, which only setattr renews


def _load_nothing(*_args: Any) -> None:
    pass


def _stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
    raise _Reached(output)


def _draws(device: torch.device | None) -> Tensor:
    return torch.get_rng_state() if device is None else torch.cuda.get_rng_state(device)


def _set_draws(device: torch.device | None, state: Tensor) -> None:
    torch.set_rng_state(state) if device is None else torch.cuda.set_rng_state(state, device)
