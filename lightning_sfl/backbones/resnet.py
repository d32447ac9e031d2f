"""ResNet-18 in its CIFAR form (He et al., 2016): 3x3 stem, no max-pool, torchvision's parameter names."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from lightning_sfl.backbones.checks import one_of, positive

Norm = Literal["batch", "group"]


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """BatchNorm, or GroupNorm with up to 32 groups (statistics of one sample only, so no buffers to average)."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(math.gcd(32, channels), channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; cuts inside it are refused, since the shortcut would pass around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = normalisation(norm, outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = normalisation(norm, outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), normalisation(norm, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet18(nn.Sequential):
    """(rows, channels, height, width) -> (rows, num_classes) logits; 11,173,962 parameters by default.

    Stages: conv1 bn1 relu layer1 layer2 layer3 layer4 avgpool flatten fc; layer1.0 ... layer4.1 are stages too.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch", width: int = 64) -> None:
        positive(num_classes=num_classes, in_channels=in_channels, width=width)
        one_of(("batch", "group"), norm=norm)
        stages: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            bn1=normalisation(norm, width),
            relu=nn.ReLU(),
        )
        inputs = width
        for i in range(4):
            outputs, stride = width * 2**i, 1 if i == 0 else 2
            stages[f"layer{i + 1}"] = nn.Sequential(
                BasicBlock(inputs, outputs, stride, norm), BasicBlock(outputs, outputs, 1, norm)
            )
            inputs = outputs
        stages |= OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, num_classes))
        super().__init__(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
