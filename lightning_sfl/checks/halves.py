"""The halves against the whole network: outputs and gradients, in both modes; and what its layers are like."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.checks.bench import EXACT, Bench
from lightning_sfl.checks.finding import Measured
from lightning_sfl.checks.seen import modules_of
from lightning_sfl.checks.states import furthest, kept
from lightning_sfl.checks.surroundings import default_dtype
from lightning_sfl.core.cut import cloned, like, parts
from lightning_sfl.core.splitting.observe import same_draws

CPU = torch.device("cpu")
Sides = tuple[nn.Module, nn.Module]


def cut_in_eval_mode(bench: Bench) -> Measured:
    """The certificate that every run shows on its first screen, and the halves' outputs once more."""
    certificate = bench.halves.certificate
    found = compared(bench, training=False)
    return Measured(found["outputs"], bench.rounding, certificate.outputs_match + f", cut by {certificate.way}")


def cut_in_train_mode(bench: Bench) -> Measured:
    """The same where dropout draws and batch normalisation moves its statistics."""
    found = compared(bench, training=True)
    return Measured(max(found["outputs"], found["buffers"]), bench.rounding)


def gradients_through_the_cut(bench: Bench) -> Measured:
    """Relative to the largest entry of the whole network's gradient."""
    found = compared(bench, training=True)
    return Measured(found["gradients"] / max(found["size"], torch.finfo(torch.float64).tiny), bench.rounding)


def compared(bench: Bench, training: bool) -> dict[str, float]:
    """Largest absolute differences of outputs, buffers and gradients; `size`: the largest gradient."""
    dtype = torch.float64 if bench.precise == EXACT else torch.float32
    network = copy.deepcopy(bench.method.backbone[0]).to(dtype).train(training)
    sides = modules_of(bench.halves, dtype)
    for half in sides:
        half.train(training)
    with default_dtype(dtype):
        x, labels = bench.few.batch()
        expected = through_the_whole(bench, network, x, labels)
        found = through_the_cut(bench, sides, x, labels)
    states = kept(sides[0]) | kept(sides[1])
    gradients = {name: gradient for name, gradient in expected[1].items() if name in found[1]}
    lacking = expected[1].keys() != found[1].keys()
    return {
        "outputs": furthest({"outputs": found[0]}, {"outputs": expected[0]}),
        "buffers": furthest(states, kept(network)),
        "gradients": float("inf") if lacking else furthest(found[1], gradients),
        "size": max((gradient.abs().max().item() for gradient in expected[1].values()), default=0.0),
    }


def through_the_whole(bench: Bench, network: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and every parameter's gradient of the method's loss, end to end."""
    with same_draws(CPU):
        logits = network(x)
        bench.method.loss(logits, labels).backward()
    return logits.detach(), gradients_of([network])


def through_the_cut(bench: Bench, sides: Sides, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The same in two walks, the second of which starts from the gradient that the server half gave."""
    with same_draws(CPU):
        smashed = sides[0](x)
        received = like(smashed, [part.detach().requires_grad_(part.is_floating_point()) for part in parts(smashed)])
        logits = sides[1](cloned(received))
        bench.method.loss(logits, labels).backward()
        pairs = [(a, b.grad) for a, b in zip(parts(smashed), parts(received), strict=True) if a.requires_grad]
        torch.autograd.backward([a for a, _ in pairs], [b for _, b in pairs])
    return logits.detach(), gradients_of(sides)


def gradients_of(modules: Any) -> dict[str, Tensor]:
    """Gradients by parameter name, of those that have one."""
    named = [pair for module in modules for pair in module.named_parameters()]
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


# --- what the network is like ---------------------------------------------------------------------------------------


def draws_at_random(bench: Bench) -> bool:
    """Whether the network's outputs in train mode depend on the generator: dropout and the like."""
    outputs = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            outputs.append(trained(bench)(bench.few.batch()[0]))
    return not torch.equal(*outputs)


def couples_rows(bench: Bench) -> bool:
    """Whether a row's output in train mode depends on the rows beside it: batch normalisation and the like."""
    x = bench.few.batch()[0]
    with same_draws(CPU), torch.no_grad():
        together = trained(bench)(x)
        apart = torch.cat([trained(bench)(part) for part in (x[: len(x) // 2], x[len(x) // 2 :])])
    return not torch.allclose(together, apart, rtol=1e-4, atol=1e-5)


def trained(bench: Bench) -> nn.Module:
    """A copy of the network in train mode."""
    return copy.deepcopy(bench.method.backbone[0]).train()


def need_plain_layers(bench: Bench) -> None:
    """Not applicable where a row's result depends on the rows beside it, or on draws that go by client."""
    bench.need(not couples_rows(bench), "rows of one batch meet in the network (batch normalisation or alike)")
    bench.need(not draws_at_random(bench), "the network draws at random (dropout or alike), by client")
