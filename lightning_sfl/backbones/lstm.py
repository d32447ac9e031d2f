"""Character LSTM of the federated Shakespeare task (McMahan et al., 2017; LEAF): 819,920 parameters for 80 symbols."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from lightning_sfl.backbones.checks import positive


class LSTMLayer(nn.LSTM):
    """One LSTM layer whose output is the sequence alone, so that one tensor crosses a cut behind it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(rows, length, inputs) -> (rows, length, outputs); the states start at zero."""
        return super().forward(x)[0]


class CharLSTM(nn.Sequential):
    """(rows, length) int64 -> (rows, length, vocab_size) logits; any length.

    Stages: embed lstm1 ... lstmN head.
    """

    def __init__(self, vocab_size: int, embedding: int = 8, hidden: int = 256, layers: int = 2) -> None:
        positive(vocab_size=vocab_size, embedding=embedding, hidden=hidden, layers=layers)
        stages: OrderedDict[str, nn.Module] = OrderedDict(embed=nn.Embedding(vocab_size, embedding))
        for i in range(1, layers + 1):
            stages[f"lstm{i}"] = LSTMLayer(embedding if i == 1 else hidden, hidden)
        stages["head"] = nn.Linear(hidden, vocab_size)
        super().__init__(stages)
