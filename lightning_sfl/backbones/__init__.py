"""Backbones: plain torch modules with named stages, made to be cut; they import nothing else of the project."""

from lightning_sfl.backbones.cnn import DigitsCNN, FedAvgCNN, LeNet5
from lightning_sfl.backbones.lstm import CharLSTM
from lightning_sfl.backbones.mlp import MLP
from lightning_sfl.backbones.resnet import ResNet18
from lightning_sfl.backbones.transformer import CausalTransformer

__all__ = ["MLP", "CausalTransformer", "CharLSTM", "DigitsCNN", "FedAvgCNN", "LeNet5", "ResNet18"]
