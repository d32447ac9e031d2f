"""Cut a model in two by the name of a module, prove that the halves are the model, and list where it can be cut."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_sfl.core.errors import ConfigError, require
from lightning_sfl.core.splitting.crossing import Refused
from lightning_sfl.core.splitting.fx import Trace, by_fx, trace
from lightning_sfl.core.splitting.hook import by_hook
from lightning_sfl.core.splitting.observe import Cut, Observation
from lightning_sfl.core.splitting.proof import Certificate, prove
from lightning_sfl.core.splitting.slices import by_slice

__all__ = ["Certificate", "CutListing", "CutRow", "Split", "cuts", "split"]


@dataclass(frozen=True)
class Split:
    """Two independent halves with the model's parameter names; server_half(client_half(x)) is the model.

    client_half returns a tensor, or a flat tuple if the server uses several tensors of the cut module's output;
    server_half takes the same as its one argument.
    """

    client_half: nn.Module
    server_half: nn.Module
    certificate: Certificate


@dataclass(frozen=True)
class CutRow:
    """One valid cut; shapes and KiB are per sample, the way is `slice`, `fx` or `hook`."""

    name: str
    smashed_shapes: tuple[tuple[int, ...], ...]
    kib_per_sample: float
    client_parameters: int
    server_parameters: int
    way: str


@dataclass(frozen=True)
class CutListing:
    """Every named module: the valid cuts in the order in which forward ends them, and (name, reason) of the others."""

    valid: tuple[CutRow, ...]
    refused: tuple[tuple[str, str], ...]


class _Bench:
    """A private copy of the model with what was observed on it and its trace, made once for all cuts."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        require(len(example) >= 2, "example", tuple(example.shape), "at least 2 rows")
        self.model = copy.deepcopy(model).eval()
        self.seen = Observation(self.model, example)
        self._traced: Trace | str | None = None

    def traced(self) -> Trace | str:
        if self._traced is None:
            self._traced = trace(self.model)
        return self._traced

    def build(self, way: str, cut: Cut) -> tuple[nn.Module, nn.Module]:
        if way == "slice":
            return by_slice(self.model, cut)
        return by_fx(self.traced(), cut) if way == "fx" else by_hook(self.model, cut, self.seen.example)

    def cut(self, name: str, gradients: bool) -> tuple[tuple[nn.Module, nn.Module], Certificate]:
        """The halves by the first way that passes the proof; raises Refused with the last reason."""
        cut = self.seen.cut(name)
        reason = Refused("no way to cut")
        for way in ("slice", "fx", "hook"):
            try:
                halves = self.build(way, cut)
                return halves, prove(halves, cut, self.seen, way, gradients)
            except Refused as refused:
                reason = refused
                if refused.final:
                    break
        raise reason

    def plausible(self) -> list[str]:
        """Names that the observation alone does not refuse, in the order in which forward reaches them."""
        names = []
        for name in self.seen.called():
            try:
                self.seen.cut(name)
            except Refused:
                continue
            names.append(name)
        return names


@torch.inference_mode(False)
def split(model: nn.Module, cut_layer: str, example: Tensor) -> Split:
    """Cut `model` behind the module `cut_layer` (dotted name); `example`: at least two rows of its input.

    The model, its buffers and the generators stay as they are. Raises ConfigError in one line, with the nearest valid
    cuts, if the name is unknown or the halves could not be proven to be the model.
    """
    bench = _Bench(model, example)
    names = {id(module): name for name, module in bench.model.named_modules()}
    known = dict(bench.model.named_modules(remove_duplicate=False))
    if not cut_layer or cut_layer not in known:
        allowed = _similar(cut_layer, bench.plausible())
        raise ConfigError(f"cut_layer={cut_layer!r} is not allowed: the model has no module of that name; {allowed}")
    try:
        halves, certificate = bench.cut(names[id(known[cut_layer])], gradients=True)
    except Refused as refused:
        allowed = _near(cut_layer, bench)
        raise ConfigError(f"cut_layer={cut_layer!r} is not allowed: {refused}; {allowed}") from None
    # One copy each: a module without state that runs on both sides (a ReLU) must not be shared by the halves.
    client_half, server_half = (_in_modes_of(model, copy.deepcopy(half)) for half in halves)
    return Split(client_half, server_half, certificate)


@torch.inference_mode(False)
def cuts(model: nn.Module, example: Tensor) -> CutListing:
    """Try every named module as the cut, with the proof that `split` gives save for the gradients."""
    bench = _Bench(model, example)
    valid, refused = [], []
    ran = bench.seen.called()
    for name in [*ran, *(name for name, _ in bench.model.named_modules() if name and name not in set(ran))]:
        try:
            c = bench.cut(name, gradients=False)[1]
        except Refused as reason:
            refused.append((name, str(reason)))
        else:
            kib = c.bytes_per_sample / 1024
            valid.append(CutRow(name, c.smashed_shapes, kib, c.client_parameters, c.server_parameters, c.way))
    return CutListing(tuple(valid), tuple(refused))


def _in_modes_of(model: nn.Module, half: nn.Module) -> nn.Module:
    """Train or eval mode of every module as in the given model; a single frozen layer stays frozen."""
    half.train(model.training)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in half.named_modules():
        if name and modes.get(name, model.training) != model.training:
            module.training = modes[name]
    return half


def _similar(name: str, valid: list[str]) -> str:
    """Valid cuts of similar spelling, or the first few."""
    return _listed(difflib.get_close_matches(name, valid, n=3, cutoff=0.4) or valid[:5])


def _near(name: str, bench: _Bench) -> str:
    """Valid cuts around a refused one: the modules that enclose it, innermost first, then those reached next to it."""
    valid = bench.plausible()
    order = {other: i for i, other in enumerate(bench.seen.called())}
    here = order.get(name, 0)
    around = [other for other in valid if name.startswith(f"{other}.")]
    rest = [other for other in valid if other not in around and other != name]
    around.sort(key=len, reverse=True)
    rest.sort(key=lambda other: abs(order[other] - here))
    return _listed((around + rest)[:2])


def _listed(names: list[str]) -> str:
    return f"nearest valid cuts: {', '.join(names)}" if names else "this model has no valid cut"
