"""The proof on one batch that two halves are the model: outputs, gradients, parameters and rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_sfl.core.splitting.crossing import Refused, leaves, pack, unpack
from lightning_sfl.core.splitting.hook import ServerByHook
from lightning_sfl.core.splitting.observe import FORWARD_ERRORS, Cut, Observation, same_draws

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Certificate:
    """What was found when the halves were checked against the model on the example batch, in eval mode.

    smashed_shapes leaves the samples' dimension out; bytes_per_sample is what one sample sends up. outputs_match:
    `bitwise`, or `within 1e-06`. gradients_match: every parameter's gradient through the cut was compared, too.
    """

    way: str
    cut_layer: str
    smashed_shapes: tuple[tuple[int, ...], ...]
    bytes_per_sample: int
    client_parameters: int
    server_parameters: int
    outputs_match: str
    gradients_match: bool

    def describe(self) -> str:
        """One line for the log."""
        shapes = " + ".join("x".join(map(str, shape)) or "scalar" for shape in self.smashed_shapes)
        checked = "outputs and gradients match" if self.gradients_match else "outputs match"
        return (
            f"cut {self.cut_layer}: client {self.client_parameters:,} params, "
            f"server {self.server_parameters:,} params, smashed {shapes} "
            f"({self.bytes_per_sample / 1024:.1f} KiB/sample) by {self.way} [checked: {checked}]"
        )


def prove(halves: tuple[nn.Module, nn.Module], cut: Cut, seen: Observation, way: str, gradients: bool) -> Certificate:
    """Check the halves (put into eval mode); raises Refused with what is wrong."""
    client, server = (half.eval() for half in halves)
    _same_state(client, server, seen)
    try:
        with same_draws(seen.example.device):
            smashed = unpack(client(seen.example.clone()))
            received = [t.detach().clone().requires_grad_() for t in smashed]
            outputs = leaves(server(pack([t.clone() for t in received])))
            match = _compare(outputs, seen.outputs)
            _no_raw_input(server, received, seen.outputs)
        with same_draws(seen.example.device):
            _one_row(client, server, smashed, seen)
        if gradients:
            _same_gradients(client, server, seen)
    except FORWARD_ERRORS as error:
        raise Refused(f"the halves do not run: {str(error).splitlines()[0] if str(error) else error!r}") from error
    return Certificate(
        way=way,
        cut_layer=cut.name,
        smashed_shapes=tuple(tuple(t.shape[1:]) for t in smashed),
        bytes_per_sample=sum(t[0].numel() * t.element_size() for t in smashed),
        client_parameters=sum(p.numel() for p in client.parameters()),
        server_parameters=sum(p.numel() for p in server.parameters()),
        outputs_match=match,
        gradients_match=gradients,
    )


def _same_state(client: nn.Module, server: nn.Module, seen: Observation) -> None:
    """Every state key of the model on exactly one side."""
    keys = Counter([*client.state_dict(), *server.state_dict()])
    wrong = sorted(key for key in {*keys, *seen.state_keys} if keys[key] != 1 or key not in seen.state_keys)
    if wrong:
        raise Refused(f"{wrong[0]} is not on exactly one side")


def _compare(outputs: list[Tensor], expected: list[Tensor]) -> str:
    if len(outputs) != len(expected) or any(a.shape != b.shape for a, b in zip(outputs, expected, strict=True)):
        raise Refused("the halves give outputs of another shape than the model")
    pairs = list(zip(outputs, expected, strict=True))
    if all(torch.equal(a, b) for a, b in pairs):
        return "bitwise"
    if not all(torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True) for a, b in pairs):
        raise Refused("the halves give other outputs than the model (the raw input may be needed behind it)")
    return f"within {TOLERANCE:g}"


def _no_raw_input(server: nn.Module, received: list[Tensor], expected: list[Tensor]) -> None:
    """Another dummy input must not change what the server half computes; the other ways have no input at all there."""
    if isinstance(server, ServerByHook):
        with same_draws(received[0].device):
            server.fill = 1
            try:
                _compare(leaves(server(pack([t.clone() for t in received]))), expected)
            except Refused:
                raise Refused("the raw input is needed behind it") from None
            finally:
                server.fill = 0


def _one_row(client: nn.Module, server: nn.Module, smashed: list[Tensor], seen: Observation) -> None:
    """A batch of one: shows whether the first dimension really is the samples'."""
    single = unpack(client(seen.example[:1].clone()))
    for one, many in zip(single, smashed, strict=True):
        if one.shape != (1, *many.shape[1:]):
            raise Refused(f"one sample gives {tuple(one.shape)} there, but {seen.rows} give {tuple(many.shape)}")
    server(pack([t.detach() for t in single]))


def _same_gradients(client: nn.Module, server: nn.Module, seen: Observation) -> None:
    """Backward through the whole model, and through the cut, from the same output gradients."""
    whole = dict(seen.model.named_parameters(remove_duplicate=False))
    halves = {n: p for half in (client, server) for n, p in half.named_parameters(remove_duplicate=False)}
    # cuDNN refuses to run a recurrent layer backward in eval mode; torch's own kernels do it.
    with torch.backends.cudnn.flags(enabled=False):
        with same_draws(seen.example.device):
            _backward(leaves(seen.model(seen.example.clone())))
        expected = {name: p.grad for name, p in whole.items()}
        for parameter in whole.values():
            parameter.grad = None
        with same_draws(seen.example.device):
            smashed = unpack(client(seen.example.clone()))
            received = [t.detach().clone().requires_grad_() for t in smashed]
            _backward(leaves(server(pack([t.clone() for t in received]))))
            torch.autograd.backward(smashed, [t.grad for t in received])
    for name, gradient in expected.items():
        if not _near(halves[name].grad, gradient):
            raise Refused(f"the gradient of {name} differs from the model's")
    for parameter in halves.values():
        parameter.grad = None


def _near(own: Tensor | None, gradient: Tensor | None) -> bool:
    """Equal up to rounding, measured against the largest entry; None (not reached) only equals None."""
    if own is None or gradient is None:
        return own is gradient
    return torch.allclose(own, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), equal_nan=True)


def _backward(outputs: list[Tensor]) -> None:
    """Backward from fixed random gradients, on the outputs that have a graph."""
    able = [t for t in outputs if t.requires_grad]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in able]
    torch.autograd.backward(able, weights)
