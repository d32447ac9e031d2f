"""One watched forward pass, and what it says about every cut: the side of each parameter, or why it cannot work.

Every module's output is replaced by a clone, which gives it a place of its own in autograd's graph. Walking back from
the model's output and stopping there tells what the server half would need; walking back from there, what the client
half needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.randomness import seed_generators, untouched_generators
from lightning_sfl.core.splitting.crossing import Refused, leaves, refill

FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)


@dataclass
class Visit:
    """Ticks at which a module was entered and left, and its last output (clones, with their graph)."""

    entered: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    output: Any = None


@dataclass(frozen=True)
class Cut:
    """A cut that can work: the module's output, which of its tensors go over, and the side of every state key."""

    name: str
    output: Any
    used: tuple[int, ...]
    sides: dict[str, str]
    phases: dict[str, str]

    def keys(self, side: str) -> list[str]:
        """State keys of one side, `client` or `server`, in the model's order."""
        return [key for key, where in self.sides.items() if where == side]


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Seed the generators for a while, so that two runs of a model with randomness can be compared."""
    with untouched_generators(device), torch.inference_mode(False), torch.enable_grad():
        seed_generators(0, device)
        yield


def walk(tensors: Iterable[Tensor], stop: AbstractSet[Any] = frozenset()) -> tuple[set[Any], set[int]]:
    """Autograd's graph behind these tensors, not past `stop`: (nodes seen, also the stops met; ids of leaf tensors)."""
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen: set[Any] = set()
    reached: set[int] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in stop:
            continue
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        stack.extend(n for n, _ in node.next_functions if n is not None)
    return seen, reached


class Observation:
    """What one forward of `model` (in eval mode, its own copy) on `example` showed."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model
        self.example = example.detach().clone()
        self.names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.names.setdefault(id(parameter), []).append(name)
        self.state_keys = list(model.state_dict())
        self.trainable = {id(p) for p in model.parameters() if p.requires_grad}
        try:
            with same_draws(example.device):
                self.outputs = [t.detach() for t in leaves(model(self.example.clone()))]
            self._watch()
        except FORWARD_ERRORS as error:
            shape = "x".join(map(str, example.shape))
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(f"the model does not take the data: an input of {shape} raises {reason}") from error

    @property
    def rows(self) -> int:
        return len(self.example)

    def _watch(self) -> None:
        """Run forward with every floating parameter needing a gradient, so that frozen ones are seen as well."""
        self.visits = {name: Visit() for name, _ in self.model.named_modules()}
        ticks = iter(range(10**9))
        floating = [p for p in self.model.parameters() if p.is_floating_point()]
        hooks = []
        for name, module in self.model.named_modules():
            visit = self.visits[name]
            hooks.append(module.register_forward_pre_hook(lambda *_, v=visit: v.entered.append(next(ticks))))
            hooks.append(module.register_forward_hook(lambda *a, v=visit: _leave(v, a[-1], next(ticks))))
        # A clone of a leaf: it has a place in the graph, and a model may change its input in place.
        watched = self.example.clone().requires_grad_(self.example.is_floating_point()).clone()
        self.input_node = watched.grad_fn
        try:
            for parameter in floating:
                parameter.requires_grad_(True)
            with same_draws(self.example.device):
                self.root = leaves(self.model(watched))
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in floating:
                parameter.requires_grad_(id(parameter) in self.trainable)

    def called(self) -> list[str]:
        """Names of the modules that ran, the model itself left out, in the order in which they ended."""
        ran = [name for name, visit in self.visits.items() if name and visit.left]
        return sorted(ran, key=lambda name: self.visits[name].left[0])

    def cut(self, name: str) -> Cut:
        """The facts of the cut behind the named module; raises Refused with the reason if it cannot work."""
        visit = self.visits[name]
        output = self._tensors(visit)
        nodes = {t.grad_fn: i for i, t in enumerate(output) if t.grad_fn is not None}
        behind, server = walk(self.root, stop=set(nodes))
        used = tuple(sorted(i for node, i in nodes.items() if node in behind))
        if not nodes:
            raise Refused("no parameter lies before it")
        if not used:
            raise Refused("its output does not reach the model's output")
        for i in used:
            self._fits(output[i])
        before, client = walk(output[i] for i in used)
        self._apart(before, client, behind - set(nodes), server)
        for where, reached in (("before", client), ("behind", server)):
            if not reached & self.trainable:
                raise Refused(f"no trainable parameter lies {where} it")
        phases = self._phases(name)
        return Cut(name, visit.output, used, self._sides(phases, client, server), phases)

    def _tensors(self, visit: Visit) -> list[Tensor]:
        if not visit.left:
            raise Refused("it is not called in forward")
        if len(visit.left) > 1:
            raise Refused(f"it is called {len(visit.left)} times in one forward")
        output = leaves(visit.output)
        if not output:
            raise Refused("it does not return a tensor")
        return output

    def _fits(self, tensor: Tensor) -> None:
        if not tensor.is_floating_point():
            raise Refused(f"its output is {tensor.dtype}, not floating point")
        if tensor.dim() < 1 or tensor.shape[0] != self.rows:
            raise Refused(f"its output {tuple(tensor.shape)} does not have the samples as its first dimension")

    def _apart(self, before: set[Any], client: set[int], behind: set[Any], server: set[int]) -> None:
        """Refuse whatever reaches the output of the model other than through the cut."""
        both = sorted(name for i in client & server if i in self.names for name in self.names[i])
        if any(not hasattr(node, "variable") and node is not self.input_node for node in before & behind):
            where = f" ({both[0]} is reached from both sides)" if both else ""
            raise Refused(f"a value from before it is also used behind it, as in a skip connection{where}")
        if both:
            raise Refused(f"tied weights lie on both sides ({', '.join(both[:2])})")
        if self.input_node in behind:
            raise Refused("the raw input is needed behind it")

    def _phases(self, cut_layer: str) -> dict[str, str]:
        """`client` or `server` for every module that ran wholly on one side, `both` otherwise; absent: never called."""
        end = self.visits[cut_layer].left[0]
        phases = {}
        for name, visit in self.visits.items():
            if visit.left:
                front, back = visit.left[-1] <= end, visit.entered[0] > end
                phases[name] = "client" if front else "server" if back else "both"
                module = self.model.get_submodule(name)
                if phases[name] == "both" and len(visit.left) > 1 and any(True for _ in module.buffers()):
                    raise Refused(f"{name} keeps buffers and is called on both sides of it")
        return phases

    def _sides(self, phases: dict[str, str], client: set[int], server: set[int]) -> dict[str, str]:
        """Side of every state key: by use where it is used, else by the module it stands in, else as the key before."""
        used = {n: "client" for i in client for n in self.names.get(i, ())}
        used |= {n: "server" for i in server for n in self.names.get(i, ())}
        parameters = {n for names in self.names.values() for n in names}
        sides: dict[str, str] = {}
        last = "client"
        for key in self.state_keys:
            owner = key.rpartition(".")[0]
            # A buffer of a module that runs on both sides (a mask, positions) is the server's; the client keeps a copy.
            shared = "server" if key not in parameters and phases.get(owner) == "both" else None
            last = sides[key] = used.get(key) or shared or _standing(phases, owner) or last
        return sides


def _leave(visit: Visit, output: Any, tick: int) -> Any:
    visit.left.append(tick)
    visit.output = refill(output, iter([t.clone() for t in leaves(output)]))
    return visit.output


def _standing(phases: dict[str, str], owner: str) -> str | None:
    """Side of the innermost module around `owner`, itself included, that ran on one side only."""
    while owner:
        if phases.get(owner) in ("client", "server"):
            return phases[owner]
        owner = owner.rpartition(".")[0]
    return None
