"""What a cell leaves open in the paper: how weights begin, and how inputs are scaled."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import init
from typing_extensions import override

MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's training pixels in [0, 1]


def drawn(weights: Callable[[Tensor], object], bias: float, layer: nn.Linear) -> None:
    """Weights drawn by this rule, all biases alike."""
    weights(layer.weight)
    init.constant_(layer.bias, bias)


# name -> what is done to each linear layer; "pytorch" leaves torch's own: both uniform within 1 / sqrt(inputs)
STARTS: dict[str, Callable[[nn.Linear], None]] = {
    "pytorch": lambda layer: None,
    "glorot": partial(drawn, init.xavier_uniform_, 0.0),
    "he": partial(drawn, partial(init.kaiming_normal_, nonlinearity="relu"), 0.0),
    "small": partial(drawn, partial(init.normal_, std=0.01), 0.0),
    # of TensorFlow's MNIST tutorials of the paper's year
    "truncated": partial(drawn, partial(init.trunc_normal_, std=0.1, a=-0.2, b=0.2), 0.1),
}
INPUTS = ("unit", "standard")


class Standard(nn.Module):
    """Pixels in [0, 1] to mean 0 and deviation 1 over MNIST's training rows."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return (x - MEAN) / DEVIATION


def varied(network: nn.Sequential, start: str, inputs: str) -> nn.Sequential:
    """The network with weights that begin as `start` says, fed with pixels as `inputs` says."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            STARTS[start](layer)
    if inputs == "unit":
        return network
    return nn.Sequential(OrderedDict([("standard", Standard()), *network.named_children()]))
