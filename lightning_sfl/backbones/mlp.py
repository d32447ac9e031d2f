"""Multi-layer perceptron; with its defaults the 2NN of the FedAvg paper (McMahan et al., 2017): 199,210 parameters."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lightning_sfl.backbones.checks import positive


class MLP(nn.Sequential):
    """Input of any shape with `in_features` numbers per row -> (rows, num_classes) logits.

    Stages: flatten, then fc1 relu1 ... fcN reluN for the N sizes in `hidden`, then head.
    """

    def __init__(self, in_features: int = 784, hidden: tuple[int, ...] = (200, 200), num_classes: int = 10) -> None:
        positive(in_features=in_features, num_classes=num_classes)
        stages: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        width = in_features
        for i, size in enumerate(hidden, start=1):
            positive(hidden=size)
            stages[f"fc{i}"] = nn.Linear(width, size)
            stages[f"relu{i}"] = nn.ReLU()
            width = size
        stages["head"] = nn.Linear(width, num_classes)
        super().__init__(stages)
