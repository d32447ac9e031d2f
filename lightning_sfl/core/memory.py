"""What has to be remembered from round to round, as buffers, so that every checkpoint holds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """Named tensors whose shapes may follow the data: loading takes over the shape of what was saved."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name, tensor in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if saved is not None and tensor is not None:
                self._buffers[name] = torch.empty_like(saved, device=tensor.device)
        super()._load_from_state_dict(state_dict, prefix, *others)
