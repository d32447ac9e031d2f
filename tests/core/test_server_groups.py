"""Runs of uploads that share a server step: where they end, and that their mean gradient is that of all their rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.server_groups import ServerGroups, ServerTurn, ends_of


def test_runs_cover_all_uploads_and_are_as_equal_as_can_be() -> None:
    draws = np.random.default_rng(0)
    for count, steps in draws.integers(1, 40, size=(200, 2)).tolist():
        ends = ends_of(count, steps)
        lengths = np.diff([0, *ends])
        assert len(ends) == min(count, steps)
        assert ends[-1] == count
        assert lengths.max() - lengths.min() <= 1
        assert lengths.min() >= 1


def test_nothing_to_meet_is_no_step() -> None:
    assert ends_of(0, 3) == []


@pytest.mark.parametrize("sweep", [1, 2, 3, 5, 7])
def test_pieces_end_where_runs_end(sweep: int) -> None:
    groups, met, ends = ServerGroups({0: 14}, 4), 0, []
    while met < 14:
        for size in groups.pieces(0, min(sweep, 14 - met)):
            met += size
            if groups.meet(0, size):
                ends.append(met)
    assert ends == ends_of(14, 4) == [3, 7, 10, 14]


def turn(half: nn.Module, gradient: torch.Tensor | None, rows: int, client: int) -> ServerTurn:
    for parameter in half.parameters():
        parameter.grad = gradient
    return ServerTurn(0, (client,), rows, half)


def test_the_mean_is_over_rows() -> None:
    half, draws = nn.Linear(3, 2, bias=False).double(), torch.Generator().manual_seed(0)
    gradients = [torch.randn(2, 3, generator=draws, dtype=torch.float64) for _ in range(4)]
    groups, rows = ServerGroups({0: 4}, 1), [5, 1, 8, 2]
    for client, (gradient, count) in enumerate(zip(gradients, rows, strict=True)):
        groups.keep(turn(half, gradient, count, client))
    whole = groups.close(0)
    wanted = sum(gradient * count for gradient, count in zip(gradients, rows, strict=True)) / 16
    torch.testing.assert_close(half.weight.grad, wanted, rtol=1e-12, atol=1e-12)
    assert whole == ServerTurn(0, (0, 1, 2, 3), 16, half)


def test_a_gradient_that_is_missing_is_zero_and_one_alone_is_untouched() -> None:
    half, gradient = nn.Linear(3, 2, bias=False), torch.randn(2, 3)
    groups = ServerGroups({0: 3}, 2)
    groups.keep(turn(half, gradient, 7, 0))
    groups.close(0)
    assert half.weight.grad is gradient
    groups.keep(turn(half, None, 3, 1))
    groups.keep(turn(half, gradient, 1, 2))
    groups.close(0)
    assert torch.equal(half.weight.grad, gradient / 4)


def test_fewer_uploads_than_steps_are_counted() -> None:
    assert ServerGroups({0: 3, 1: 8}, 5).missing == 2
    assert ServerGroups({0: 5}, 5).missing == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"client_scale": "mean"}, "dynamics.client_scale='mean' is not allowed: one of method, own, joint"),
        (
            {"server_steps": -1},
            "dynamics.server_steps=-1 is not allowed: an integer >= 1, or 0 for as many as the method takes",
        ),
        ({"start": "fresh"}, "dynamics.start='fresh' is not allowed: one of method, merged"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed") as refusal:
        Dynamics(**options)  # type: ignore[arg-type]
    assert str(refusal.value) == named
