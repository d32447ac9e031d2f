"""Cutting a chain: an nn.Sequential, or Sequentials nested in one another, sliced behind the named stage."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lightning_sfl.core.splitting.crossing import Refused, paths
from lightning_sfl.core.splitting.observe import Cut


def by_slice(model: nn.Module, cut: Cut) -> tuple[nn.Module, nn.Module]:
    """(client half, server half) sharing the modules of `model`; raises Refused if that does not fit the cut."""
    if len(cut.used) != len(paths(cut.output)) or any(len(path) > 1 for path in paths(cut.output)):
        raise Refused("a part of its output is not used")
    return _slice(model, cut.name.split("."))


def _slice(model: nn.Module, path: list[str]) -> tuple[nn.Sequential, nn.Sequential]:
    if not _is_plain_chain(model):
        raise Refused("the model is not a chain")
    names = list(model._modules)
    at = names.index(path[0])
    front = [(name, model._modules[name]) for name in names[: at + 1]]
    back = [(name, model._modules[name]) for name in names[at + 1 :]]
    if len(path) > 1:
        inner_front, inner_back = _slice(model._modules[path[0]], path[1:])  # type: ignore[arg-type]
        front[-1] = (path[0], inner_front)
        if len(inner_back):
            back.insert(0, (path[0], inner_back))
    return nn.Sequential(OrderedDict(front)), nn.Sequential(OrderedDict(back))  # type: ignore[arg-type]


def _is_plain_chain(model: nn.Module) -> bool:
    """A Sequential that does nothing but call its children in turn: no forward, tensors or hooks of its own."""
    return (
        isinstance(model, nn.Sequential)
        and type(model).forward is nn.Sequential.forward
        and not (model._parameters or model._buffers or model._forward_hooks or model._forward_pre_hooks)
    )
