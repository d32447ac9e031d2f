"""Two devices made of the processor: tensors with real numbers that say where they are, and refuse to meet elsewhere.

As with CUDA, an operation whose tensors are on different devices is an error, whatever it computes, and so is one that
mixes a device and the processor; numbers without dimensions and row numbers may come from the processor. Every copy
from one place to another is written down. The numbers are the processor's own, so a run must come out bit for bit as it
does without all this.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.accelerators import Accelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_sfl.placement.apart import ApartStrategy

CPU = torch.device("cpu")
FIRST, SECOND = (
    torch.device("meta", 0),
    torch.device("meta", 1),
)  # torch's engine knows this kind, and it has no other use
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten._foreach_copy_.default)
TAKE_ROW_NUMBERS = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


class Apart(RuntimeError):
    """Tensors that are not on one device were to meet."""


class On(Tensor):
    """A tensor on one of the two devices; its numbers are in `held`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> On:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=device,
        )  # fmt: skip

    def __init__(self, held: Tensor, device: torch.device) -> None:
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the two devices")


@dataclass(frozen=True)
class Copy:
    """What was copied from one place to another."""

    source: torch.device
    target: torch.device
    size_bytes: int
    dtype: torch.dtype


class TwoDevices(TorchDispatchMode):
    """While it is entered, tensors can be made on, and moved to, FIRST and SECOND."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[Copy] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in COPIES and func._can_decompose():  # in inference mode nobody has done it before
            with self:
                return func.decompose(*args, **kwargs)
        asked = kwargs.pop("device", None)
        if func in COPIES:
            self._note(func, args, asked)
            if func is not torch.ops.aten._to_copy.default:
                func(*held((args, kwargs))[0])
                return args[0] if isinstance(args[0], Tensor) else None
        found = {place(tensor) for tensor in tensors_of((args, kwargs)) if not may_be_anywhere(func, tensor)}
        together = func in COPIES or len(found) < 2 or (str(func).startswith("aten._foreach") and alike(args))
        if not together:
            raise Apart(f"{func}: {sorted(map(str, found))}")
        all_places = {place(tensor) for tensor in tensors_of((args, kwargs))} - {CPU}
        where = torch.device(asked) if asked is not None else next(iter(found or all_places), CPU)
        own, named = held((args, kwargs))
        if asked is not None and where.type == "cpu":
            named["device"] = where
        return self._placed(func, func(*own, **named), where, args)

    def _placed(self, func: Any, result: Any, where: torch.device, args: Any) -> Any:
        known = {id(tensor.held): tensor for tensor in tensors_of(args) if isinstance(tensor, On)}
        if str(func).startswith("aten._foreach") and isinstance(result, list | tuple):
            columns = [arg for arg in args if isinstance(arg, list | tuple) and tensors_of(arg)]
            places = [place(tensor) for tensor in columns[0]]
            return [wrapped(tensor, spot, known) for tensor, spot in zip(result, places, strict=True)]
        return tree_map(lambda each: wrapped(each, where, known) if isinstance(each, Tensor) else each, result)

    def _note(self, func: Any, args: Any, asked: Any) -> None:
        if func is torch.ops.aten._to_copy.default:
            pairs = [(args[0], torch.device(asked) if asked is not None else place(args[0]))]
        else:
            targets, sources = (arg if isinstance(arg, list | tuple) else [arg] for arg in args[:2])
            pairs = [(source, place(target)) for target, source in zip(targets, sources, strict=True)]
        for source, target in pairs:
            if place(source) != target:
                self.copies.append(Copy(place(source), target, source.numel() * source.element_size(), source.dtype))

    def crossed(self, source: torch.device, target: torch.device) -> int:
        """Bytes that were copied from one place to another."""
        return sum(copy.size_bytes for copy in self.copies if (copy.source, copy.target) == (source, target))


def place(tensor: Tensor) -> torch.device:
    return tensor.device


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def held(tree: Any) -> Any:
    return tree_map(lambda each: each.held if isinstance(each, On) else each, tree)


def wrapped(tensor: Tensor, where: torch.device, known: dict[int, On]) -> Tensor:
    """On this device; what an operation in place gives back is what it was given."""
    if where == CPU:
        return tensor
    return known[id(tensor)] if id(tensor) in known else On(tensor, where)


def may_be_anywhere(func: Any, tensor: Tensor) -> bool:
    """What CUDA takes from the processor as well."""
    plain = not isinstance(tensor, On)
    number = tensor.dim() == 0 and func not in (torch.ops.aten.stack.default, torch.ops.aten.cat.default)
    return plain and (number or (func in TAKE_ROW_NUMBERS and not tensor.is_floating_point()))


def alike(args: Any) -> bool:
    """Whether an operation on lists has tensors of one device in each of its places."""
    columns = [arg for arg in args if isinstance(arg, list | tuple) and tensors_of(arg)]
    return all(len({place(tensor) for tensor in row}) == 1 for row in zip(*columns, strict=True))


class FromPlainNumbers(TorchFunctionMode):
    """Between Python's numbers and tensors, which torch does not hand to the other mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor:
            like, data = args
            return torch.tensor(data, dtype=like.dtype).to(like.device)
        if func is Tensor.tolist and isinstance(args[0], On):
            return args[0].held.tolist()
        return func(*args, **kwargs)


class Pretended(Accelerator):
    """Both devices, for Lightning."""

    def setup_device(self, device: torch.device) -> None:
        assert device == FIRST

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [FIRST, SECOND]

    @staticmethod
    def auto_device_count() -> int:
        return 2

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "pretended"


@contextmanager
def two_devices() -> Iterator[TwoDevices]:
    """Enter the devices."""
    switched_off = partial(torch.autocast, "cpu")  # which is asked by the name of a device
    with (
        patch.object(torch, "autocast", lambda kind, **options: switched_off(**options)),
        warnings.catch_warnings(),
        FromPlainNumbers(),
        TwoDevices() as devices,
    ):
        warnings.filterwarnings("ignore", message=".*non-meta parameter.*no-op")  # here it is none
        yield devices


class Halves(ApartStrategy):
    """The strategy on these devices; a parameter that is moved there stays the same parameter, as it does with CUDA."""

    def __init__(self) -> None:
        super().__init__(FIRST, SECOND)

    def save_checkpoint(self, checkpoint: Any, filepath: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(held(checkpoint), filepath, storage_options)  # as whoever loads it has it

    def model_to_device(self) -> None:
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            super().model_to_device()
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)


def on(module: torch.nn.Module) -> set[torch.device]:
    """Where the parameters and buffers of a module are."""
    everything: Sequence[Tensor] = [*module.parameters(), *module.buffers()]
    return {tensor.device for tensor in everything}
