"""Three ways to get the scalars <grad f, v_j> of a loss f: from its gradient, by forward mode, by differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_sfl.core.holograd.directions import Directions, without_autocast

Projection = Literal["grad", "jvp", "fd"]
Loss = Callable[[Sequence[Tensor]], Tensor]  # of all trainable parameters, in order; the same draws at every call
DIFFERENCE = 1e-3


def flat(tensors: Iterable[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """One vector; what is None counts as zeros of the tensor at its place in `like`."""
    pairs = zip(tensors, like, strict=True)
    return torch.cat([(torch.zeros_like(other) if t is None else t).detach().flatten() for t, other in pairs])


def unflat(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Pieces of a vector in the shapes of `like`; views."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]


def run_at(module: nn.Module, values: Sequence[Tensor], x: Any) -> Any:
    """The module's output for `x` if its trainable parameters were `values`; its buffers are left as they are."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return functional_call(module, {**dict(zip(names, values, strict=True)), **buffers}, (x,))


def chain_loss(
    modules: Sequence[nn.Module], x: Tensor, loss: Callable[[Tensor], Tensor], draw: Callable[[int], None]
) -> Loss:
    """The loss of these modules, one after the other, at other values of all their trainable parameters.

    draw(i) is called before module i, and must point torch's generator at the same numbers every time.
    """

    def at(values: Sequence[Tensor]) -> Tensor:
        left, out = list(values), x
        for index, module in enumerate(modules):
            count = sum(parameter.requires_grad for parameter in module.parameters())
            draw(index)
            out, left = run_at(module, left[:count], out), left[count:]
        return loss(out)

    return at


def project_loss(loss: Loss, parameters: Sequence[Tensor], directions: Directions, way: Projection) -> Tensor:
    """Scalars on the basis' rows, then on the directions: (rows + count,).

    grad: one backward pass, then dot products. jvp: a forward pass for each direction, no activations are kept.
    fd: central differences, far too coarse in float32 for a proof; for diagnosis only.
    """
    point = [parameter.detach() for parameter in parameters]
    if way == "grad":
        leaves = [tensor.clone().requires_grad_() for tensor in point]
        gradient = flat(torch.autograd.grad(loss(leaves), leaves, allow_unused=True), leaves)
        return project_gradients(gradient[None], directions)[0]
    along = _forward_mode if way == "jvp" else _difference
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _without_onednn():
        vectors = [directions.basis, *(block for _, block in directions.blocks())]
        return torch.stack([along(loss, point, vector) for block in vectors for vector in block])


@without_autocast
def project_gradients(gradients: Tensor, directions: Directions) -> Tensor:
    """The same from gradients (n, size): scalars (n, rows + count)."""
    return torch.cat([gradients @ directions.basis.T, directions.project(gradients)], dim=1)


def _forward_mode(loss: Loss, point: list[Tensor], vector: Tensor) -> Tensor:
    derivative: Tensor = jvp(lambda *values: loss(values), tuple(point), tuple(unflat(vector, point)))[1]
    return derivative


def _difference(loss: Loss, point: list[Tensor], vector: Tensor) -> Tensor:
    pieces = unflat(vector, point)
    ends = [loss([p + h * piece for p, piece in zip(point, pieces, strict=True)]) for h in (DIFFERENCE, -DIFFERENCE)]
    return (ends[0] - ends[1]) / (2 * DIFFERENCE)


@contextmanager
def _without_onednn() -> Iterator[None]:
    """oneDNN's LSTM has no forward-mode rule. (torch's own context for this warns of TF32 when it restores.)"""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)
