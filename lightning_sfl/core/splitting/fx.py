"""Cutting a traced model: two graphs from one `torch.fx` trace, each with the submodules and names of the model."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from lightning_sfl.core.splitting.crossing import Refused, follow, paths, refill
from lightning_sfl.core.splitting.observe import FORWARD_ERRORS, Cut

# Reads of an input that need its form, not its values; a dummy input can serve them.
_SIZE_METHODS = {"size", "dim", "ndimension", "numel", "new_zeros", "new_ones", "new_empty", "new_full"}
_SIZE_FUNCTIONS = {torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like}


class _Tracer(fx.Tracer):
    """Remembers what every module returned, also of those that are traced through."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, Any] = {}

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        self.results[self.path_of_module(m)] = fx.node.map_aggregate(
            result, lambda value: value.node if isinstance(value, fx.Proxy) else value
        )
        return result


@dataclass(frozen=True)
class Trace:
    """A model's graph, and the nodes that each module returned."""

    model: nn.Module
    graph: fx.Graph
    results: dict[str, Any]

    @property
    def input(self) -> fx.Node:
        return next(node for node in self.graph.nodes if node.op == "placeholder")


class TracedHalf(nn.Module):
    """Runs a graph's code on modules of its own.

    A GraphModule would do, but its deepcopy builds it anew: unused tensors get lost, constants join the state.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__()
        for registry in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[registry] = graph_module.__dict__[registry]
        self.code = type(graph_module).forward  # a plain function: copies share it, and it takes the half as its self

    def forward(self, x: Any) -> Any:
        return self.code(self, x)


def trace(model: nn.Module) -> Trace | str:
    """Trace `model`, in eval mode before and after; the reason as text where that fails or would freeze the mode."""
    try:
        tracer = _Tracer()
        graph = tracer.trace(model)
        model.train()
        training = _Tracer().trace(model)
    except (*FORWARD_ERRORS, NameError) as error:
        return f"torch.fx cannot trace it: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    finally:
        model.eval()
    if graph.python_code("self").src != training.python_code("self").src:
        return "its forward differs between train and eval mode"
    return Trace(model, graph, tracer.results)


def by_fx(traced: Trace | str, cut: Cut) -> tuple[nn.Module, nn.Module]:
    """(client half, server half) that share the submodules of the traced model."""
    if isinstance(traced, str):
        raise Refused(traced)
    if cut.name not in traced.results:
        raise Refused("it lies inside a module that torch.fx does not trace")
    halves = TracedHalf(_client(traced, cut)), TracedHalf(_server(traced, cut))
    for half, side in zip(halves, ("client", "server"), strict=True):
        _settle(half, traced.model, cut.keys(side))
    return halves


def _client(traced: Trace, cut: Cut) -> fx.GraphModule:
    result = traced.results[cut.name]
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    _copy(traced, graph, env, _needed(_nodes(result), set()))
    ways = paths(cut.output)
    values = [_fetch(graph, result, ways[i], env) for i in cut.used]
    graph.output(values[0] if len(values) == 1 else tuple(values))
    return fx.GraphModule(traced.model, graph, "ClientHalf")


def _server(traced: Trace, cut: Cut) -> fx.GraphModule:
    graph = fx.Graph()
    received = graph.placeholder("received")
    parts: list[Any] = [received]
    if len(cut.used) > 1:
        parts = [graph.call_function(operator.getitem, (received, i)) for i in range(len(cut.used))]
    env = _bindings(traced.results[cut.name], cut, parts)
    around = _around(traced, set(env))
    for node in around:
        if _reads_rows(node):
            env[node] = graph.call_method("size", (parts[0], 0))
    end = next(node for node in traced.graph.nodes if node.op == "output")
    needed = _needed(end.all_input_nodes, set(env))
    if traced.input in needed:
        sizes = {node for node in around if _reads_form(node)}
        if traced.input in _needed(end.all_input_nodes, set(env) | sizes):
            raise Refused("the raw input is needed behind it", final=True)
        raise Refused("sizes of the input are needed behind it")
    _copy(traced, graph, env, needed)
    graph.output(fx.node.map_arg(end.args[0], lambda node: env[node]))
    return fx.GraphModule(traced.model, graph, "ServerHalf")


def _bindings(result: Any, cut: Cut, parts: list[Any]) -> dict[fx.Node, Any]:
    """What stands in the server's graph for the nodes that the cut module returned; unused tensors become None."""
    ways = paths(cut.output)
    sent = dict(zip(cut.used, parts, strict=True))
    if isinstance(result, fx.Node):
        return {result: refill(cut.output, iter([sent.get(i) for i in range(len(ways))]))}
    return {follow(result, ways[i]): part for i, part in sent.items()}


def _fetch(graph: fx.Graph, result: Any, path: tuple[Any, ...], env: dict[fx.Node, Any]) -> Any:
    """The node of one tensor of a result, with the getitem calls that lead to it where the result is one node."""
    value = env[result] if isinstance(result, fx.Node) else result
    for key in path:
        value = graph.call_function(operator.getitem, (value, key)) if isinstance(value, fx.Node) else value[key]
        value = env.get(value, value) if isinstance(value, fx.Node) else value
    return value


def _nodes(result: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_aggregate(result, lambda value: found.append(value) if isinstance(value, fx.Node) else None)
    return found


def _needed(roots: list[fx.Node], known: set[fx.Node]) -> set[fx.Node]:
    """Everything these nodes are computed from, themselves included, not past `known`."""
    stack, needed = list(roots), set()
    while stack:
        node = stack.pop()
        if node not in known and node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    return needed


def _around(traced: Trace, known: set[fx.Node]) -> list[fx.Node]:
    """Nodes that depend on the model's input other than through `known`, in order."""
    around = {traced.input: None}
    for node in traced.graph.nodes:
        if node not in known and any(n in around for n in node.all_input_nodes):
            around[node] = None
    return list(around)


def _reads_form(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    named = node.target is getattr and node.args[1] in ("shape", "dtype", "device", "ndim")
    return node.op == "call_function" and (named or node.target in _SIZE_FUNCTIONS)


def _reads_rows(node: fx.Node) -> bool:
    """`x.size(0)`, `x.size()[0]` or `x.shape[0]`: the number of samples, which the received tensor knows too."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    if node.op != "call_function" or node.target is not operator.getitem or node.args[1] != 0:
        return False
    base = node.args[0]
    if not isinstance(base, fx.Node):
        return False
    whole = base.op == "call_method" and base.target == "size" and len(base.args) == 1
    return whole or (base.target is getattr and base.args[1] == "shape")


def _copy(traced: Trace, graph: fx.Graph, env: dict[fx.Node, Any], needed: set[fx.Node]) -> None:
    """Copy the needed nodes in order; inputs other than the first keep their default."""
    for node in traced.graph.nodes:
        if node in needed and node not in env:
            if node.op == "placeholder" and node is not traced.input:
                env[node] = node.args[0] if node.args else None
            else:
                env[node] = graph.node_copy(node, lambda n: env[n])


def _settle(half: nn.Module, model: nn.Module, keys: list[str]) -> None:
    """Make the state keys of `half` exactly `keys`: constants leave the state, tensors that no graph uses join it."""
    state = model.state_dict(keep_vars=True)
    for key in set(half.state_dict()) - set(keys):
        owner, _, name = key.rpartition(".")
        half.get_submodule(owner)._non_persistent_buffers_set.add(name)
    for key in [key for key in keys if key not in half.state_dict()]:
        owner, _, name = key.rpartition(".")
        module: nn.Module = half
        for part in owner.split(".") if owner else ():
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        if isinstance(state[key], nn.Parameter):
            module.register_parameter(name, state[key])
        else:
            module.register_buffer(name, state[key])
            module._non_persistent_buffers_set.discard(name)
