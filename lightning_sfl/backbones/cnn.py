"""Small convolutional nets: the FedAvg paper's CNN, one for 8x8 digits, and LeNet-5."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from lightning_sfl.backbones.checks import one_of, positive, probability


class FedAvgCNN(nn.Sequential):
    """(rows, channels, size, size) -> (rows, num_classes) logits; 1,663,370 parameters on 1x28x28.

    Stages: conv1 relu1 pool1 conv2 relu2 pool2 flatten fc1 relu3 head (McMahan et al., 2017: 5x5 kernels,
    32 and 64 maps, 512 units).
    """

    def __init__(self, in_channels: int = 1, image_size: int = 28, num_classes: int = 10) -> None:
        positive(in_channels=in_channels, image_size=image_size, num_classes=num_classes)
        if image_size < 4:
            raise ValueError(f"image_size={image_size} is not allowed: at least 4 for two poolings")
        side = image_size // 2 // 2
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 32, 5, padding=2),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(32, 64, 5, padding=2),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(64 * side * side, 512),
                relu3=nn.ReLU(),
                head=nn.Linear(512, num_classes),
            )
        )


class DigitsCNN(nn.Sequential):
    """(rows, 1, 8, 8) -> (rows, num_classes) logits; 38,282 parameters, 4,800 of them up to `pool`.

    Stages: conv1 [norm1] relu1 conv2 [norm2] relu2 pool [dropout1] flatten fc1 relu3 [dropout2] head; those in brackets
    only with the option, so the other names never change.
    """

    def __init__(
        self, num_classes: int = 10, dropout: float = 0.0, norm: Literal["none", "batch", "group"] = "none"
    ) -> None:
        positive(num_classes=num_classes)
        probability(dropout=dropout)
        one_of(("none", "batch", "group"), norm=norm)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (inputs, outputs) in enumerate(((1, 16), (16, 32)), start=1):
            stages[f"conv{i}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
            if norm != "none":
                stages[f"norm{i}"] = nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(8, outputs)
            stages[f"relu{i}"] = nn.ReLU()
        stages["pool"] = nn.MaxPool2d(2)
        if dropout > 0:
            stages["dropout1"] = nn.Dropout(dropout)
        stages |= OrderedDict(flatten=nn.Flatten(), fc1=nn.Linear(32 * 4 * 4, 64), relu3=nn.ReLU())
        if dropout > 0:
            stages["dropout2"] = nn.Dropout(dropout)
        stages["head"] = nn.Linear(64, num_classes)
        super().__init__(stages)


class LeNet5(nn.Sequential):
    """(rows, channels, size, size) -> (rows, num_classes) logits; 62,006 parameters on 3x32x32.

    Stages: conv1 relu1 pool1 conv2 relu2 pool2 flatten fc1 relu3 fc2 relu4 head (no padding; ReLU and max-pooling).
    """

    def __init__(self, in_channels: int = 3, image_size: int = 32, num_classes: int = 10) -> None:
        positive(in_channels=in_channels, image_size=image_size, num_classes=num_classes)
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"image_size={image_size} is not allowed: at least 16 for two convolutions and poolings")
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 6, 5),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(6, 16, 5),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(16 * side * side, 120),
                relu3=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
                head=nn.Linear(84, num_classes),
            )
        )
