"""A small GPT (pre-norm, untied head) whose stages form a chain, so that no token ids are needed behind a cut."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_sfl.backbones.checks import positive, probability


class TokenEmbedding(nn.Module):
    """(rows, length) int64 -> (rows, length, width): token plus learned position; length up to `context`."""

    def __init__(self, vocab_size: int, context: int, width: int, dropout: float) -> None:
        super().__init__()
        self.context = context
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[-1]
        if length > self.context:
            raise ValueError(f"length={length} is not allowed: at most context={self.context}")
        return self.dropout(self.token(ids) + self.position(torch.arange(length, device=ids.device)))


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what came before it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to its input; cuts inside are refused for that reason."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(up=nn.Linear(width, 4 * width), gelu=nn.GELU(), down=nn.Linear(4 * width, width))
        )
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout1(self.attention(self.norm1(x)))
        return x + self.dropout2(self.mlp(self.norm2(x)))


class CausalTransformer(nn.Sequential):
    """(rows, length) int64 -> (rows, length, vocab_size) logits; length up to `context`.

    Stages: tok (token and position) blocks.0 ... blocks.N norm head.
    """

    def __init__(
        self,
        vocab_size: int,
        context: int = 64,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        positive(vocab_size=vocab_size, context=context, width=width, heads=heads, layers=layers)
        probability(dropout=dropout)
        if width % heads:
            raise ValueError(f"heads={heads} is not allowed: a divisor of width={width}")
        super().__init__(
            OrderedDict(
                tok=TokenEmbedding(vocab_size, context, width, dropout),
                blocks=nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers))),
                norm=nn.LayerNorm(width),
                head=nn.Linear(width, vocab_size, bias=False),
            )
        )
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
