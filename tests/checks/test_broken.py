"""What is broken fails in `check` just where it is broken: methods, and networks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_sfl.checks.finding import examine
from lightning_sfl.checks.lines import CHECKS
from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.state import State
from lightning_sfl.methods import SFL, MiniBatchSFL, SplitMethod
from tests.checks.benches import NAMES, bench, failed, findings, states
from tests.tiny import network


class Deaf(SFL):
    """Clients hear nothing of the server's gradient."""

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        return [replace(each, sent=tuple(part * 0 for part in each.raw)) for each in super().serve(uploads)]


class Timid(SFL):
    """Half of the gradient goes back."""

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        return [replace(each, sent=tuple(part / 2 for part in each.raw)) for each in super().serve(uploads)]


class Twice(SFL):
    """The server steps twice on every upload."""

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        super().serve(uploads)
        return super().serve(uploads)


class Gambler(SFL):
    """Noise from Python's own generator."""

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        noise = 1 + 1e-3 * random.random()
        return [replace(each, sent=tuple(part * noise for part in each.raw)) for each in super().serve(uploads)]


class Forgetful(SFL):
    """Counts its rounds, and keeps the count out of checkpoints."""

    rounds_seen = 0

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        factor = 1.0 + self.rounds_seen
        return [replace(each, sent=tuple(part * factor for part in each.raw)) for each in super().serve(uploads)]

    def merge(self, plan: Plan) -> None:
        super().merge(plan)
        self.rounds_seen += 1


class Vain(SFL):
    """Trains otherwise when somebody looks."""

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        factor = 1.5 if self.watchers["on_server_step"] else 1.0
        return [replace(each, sent=tuple(part * factor for part in each.raw)) for each in super().serve(uploads)]


class Lazy(SFL):
    """Leaves the last sweep out."""

    def steps(self, plan: Plan) -> Any:
        sweeps = list(super().steps(plan))
        yield from sweeps[: max(1, len(sweeps) - 1)]


class Smuggler(SFL):
    """Sends a gradient back and counts half of it."""

    def download(self, answers: Sequence[Reply]) -> None:
        before = self.boundary.traffic_bytes["cut_gradients", "down"]
        super().download(answers)
        moved = self.boundary.traffic_bytes["cut_gradients", "down"] - before
        self.boundary.traffic_bytes["cut_gradients", "down"] -= moved // 2


class Reckless(SFL):
    """Never stops."""

    def stop_unless(self, *arguments: Any) -> None:
        pass


class Partial(MiniBatchSFL):
    """Client 0 counts double."""

    def weight_of(self, client: int, num_rows: int) -> float:
        return super().weight_of(client, num_rows) * (2 if client == 0 else 1)


class Unequal(SFL):
    """Adds a thousandth to every weight, which then no longer is a ratio."""

    def weights(self, plan: Plan) -> list[float]:
        return [weight + 1e-3 * slot for slot, weight in enumerate(super().weights(plan))]

    def put_together(self, states: Sequence[State], weights: Sequence[float], clients: Sequence[int]) -> None:
        super().put_together(states, weights, clients)
        with torch.no_grad():
            for parameter in self.merged_halves().parameters():
                parameter.mul_(1 + 1e-3 * sum(weights))


class Boastful(SFL):
    """What it says the server's backward left is twice that."""

    def serve(self, uploads: Sequence[Upload]) -> list[Reply]:
        return [replace(each, raw=tuple(part * 2 for part in each.raw)) for each in super().serve(uploads)]


BROKEN: dict[type[SplitMethod], set[str]] = {
    Deaf: {"one_step", "one_client", "denominator"},
    Timid: {"one_step", "one_client"},
    Twice: {"one_step", "one_client"},
    Gambler: {"one_step", "one_client", "repeat", "resume", "callbacks", "evaluation", "weights"},
    Forgetful: {"resume"},
    Vain: {"callbacks"},
    Lazy: {"counts", "one_client"},
    Smuggler: {"bytes"},
    Reckless: {"finite"},
    Partial: {"relabelling"},
    Unequal: {"weights", "one_client", "one_step"},
    Boastful: {"denominator"},
}
OF_THE_METHOD = [name for name in NAMES if name not in ("sl_alone", "v1_fedavg", "joint_step", "fedsgd")]


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_what_is_broken_fails_where_it_is_broken(cls: type[SplitMethod]) -> None:
    assert failed(findings(bench(cls), {*BROKEN[cls], "counts", "cut_eval"})) == BROKEN[cls]


@pytest.mark.slow
@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_what_is_broken_fails_nowhere_else(cls: type[SplitMethod]) -> None:
    assert failed(findings(bench(cls), OF_THE_METHOD)) == BROKEN[cls]


def test_a_departure_is_told_and_not_run() -> None:
    class Modest(Timid):
        """Half of the gradient goes back, as it should."""

        def departures(self) -> dict[str, str]:
            return dict.fromkeys(("one_step", "one_client"), "half of the gradient goes back")

    found = findings(bench(Modest), OF_THE_METHOD)
    assert failed(found) == set()
    assert found["one_step"].reason == "half of the gradient goes back"


def test_lines_can_be_left_out_by_name_only() -> None:
    made = bench(Timid)
    found = {finding.check.name: finding.state for finding in examine(made, CHECKS[:5], ["one_step"])}
    assert found["one_step"] == "not applicable"
    with pytest.raises(ConfigError, match=r"skip='one_stop' is not allowed: names of lines: cut_eval, repeat"):
        list(examine(made, CHECKS[:5], ["one_stop"]))


class Noise(nn.Module):
    """Draws from a generator that nobody seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = np.random.default_rng()

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.draws.standard_normal() if self.training else x


class Counter(nn.Module):
    """Counts its calls, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 1.0


def with_layer(layer: type[nn.Module]) -> Any:
    def made() -> nn.Module:
        net = network()
        net.relu2 = nn.Sequential(net.relu2, layer())
        return net

    return made


def test_a_network_with_draws_of_its_own_does_not_repeat() -> None:
    found = failed(findings(bench(SFL, with_layer(Noise))))
    assert {"repeat", "cut_train", "gradient", "sl_alone", "v1_fedavg", "fedsgd", "one_client"} <= found
    assert not found & {"cut_eval", "counts", "bytes", "finite"}


def test_a_network_that_moves_in_evaluation_is_found_out() -> None:
    found = findings(bench(SFL, with_layer(Counter)), ["cut_eval", "repeat", "evaluation"])
    assert failed(found) == {"evaluation"}
    assert "calls" in found["evaluation"].reason


def test_what_breaks_in_an_unusual_round_is_a_line_that_failed() -> None:
    class Fragile(SFL):
        """Cannot do with one participant."""

        def merge(self, plan: Plan) -> None:
            if len(plan.participants) == 1:
                raise LookupError("nobody to meet")
            super().merge(plan)

    found = findings(bench(Fragile), ["one_step", "repeat"])
    assert states(found) == {"one_step": "failed", "repeat": "ok"}
    assert found["one_step"].reason == "LookupError: nobody to meet"
