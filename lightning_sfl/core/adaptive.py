"""Optimizers of the merged update: the server's side of FedOpt.

S. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2, without bias correction. With the update D
that the clients' average has brought, m and v per number:

    m <- beta1 m + (1 - beta1) D
    v <- v + D^2                             FedAdagrad
         v - (1 - beta2) D^2 sign(v - D^2)   FedYogi
         beta2 v + (1 - beta2) D^2           FedAdam
    w <- w + lr m / (sqrt(v) + tau)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class _Adaptive(Optimizer):
    """Steps against `.grad`, which is minus the update; v starts at tau^2, as in the paper."""

    def __init__(self, params: Any, lr: float, beta1: float, beta2: float, tau: float) -> None:
        for key, value, fits in (
            ("lr", lr, 0 < lr < math.inf),
            ("beta1", beta1, 0 <= beta1 < 1),
            ("beta2", beta2, 0 <= beta2 < 1),
            ("tau", tau, 0 < tau < math.inf),
        ):
            if not fits:
                raise ValueError(f"{key}={value!r}: {'from 0 to below 1' if 'beta' in key else 'a finite number > 0'}")
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "tau": tau})

    @abstractmethod
    def spread(self, v: Tensor, squares: Tensor, beta2: float) -> Tensor:
        """The new v, from the old one and the squares of the update."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, -parameter.grad, group)

    def _move(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["m"], state["v"] = torch.zeros_like(update), torch.full_like(update, group["tau"] ** 2)
        state["m"].lerp_(update, 1 - group["beta1"])
        state["v"].copy_(self.spread(state["v"], update.square(), group["beta2"]))
        parameter.addcdiv_(state["m"], state["v"].sqrt() + group["tau"], value=group["lr"])


class FedAdam(_Adaptive):
    """Adam on the merged update: the squares are averaged over the rounds.

    Args:
        params: what is moved.
        lr: how far, in units of the update's usual size; that of the paper is found by search.
        beta1: share of the moving mean of updates that a round keeps.
        beta2: the same of their squares.
        tau: the size of updates below which the step shrinks with them.
    """

    def __init__(
        self, params: Any, lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
    ) -> None:
        super().__init__(params, lr, beta1, beta2, tau)

    def spread(self, v: Tensor, squares: Tensor, beta2: float) -> Tensor:
        return beta2 * v + (1 - beta2) * squares


class FedYogi(_Adaptive):
    """Yogi on the merged update: v moves towards the squares by no more than their own share.

    Args:
        params: what is moved.
        lr: how far, in units of the update's usual size; that of the paper is found by search.
        beta1: share of the moving mean of updates that a round keeps.
        beta2: the new squares' share is 1 - beta2.
        tau: the size of updates below which the step shrinks with them.
    """

    def __init__(
        self, params: Any, lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
    ) -> None:
        super().__init__(params, lr, beta1, beta2, tau)

    def spread(self, v: Tensor, squares: Tensor, beta2: float) -> Tensor:
        return v - (1 - beta2) * squares * (v - squares).sign()


class FedAdagrad(_Adaptive):
    """Adagrad on the merged update: the squares are summed over all rounds.

    Args:
        params: what is moved.
        lr: how far, in units of the update's usual size; that of the paper is found by search.
        beta1: share of the moving mean of updates that a round keeps; 0 in the paper's experiments.
        tau: the size of updates below which the step shrinks with them.
    """

    def __init__(self, params: Any, lr: float = 0.01, beta1: float = 0.0, tau: float = 1e-3) -> None:
        super().__init__(params, lr, beta1, 0.0, tau)

    def spread(self, v: Tensor, squares: Tensor, beta2: float) -> Tensor:
        return v + squares
