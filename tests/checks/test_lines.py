"""Every line of `check` holds for the methods that come along, and fails for what is broken just there."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_sfl.backbones import CharLSTM
from lightning_sfl.checks.bench import Bench
from lightning_sfl.checks.few import few_rows
from lightning_sfl.checks.finding import Finding, examine
from lightning_sfl.checks.lines import CHECKS
from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.rounds import Plan
from lightning_sfl.core.state import State
from lightning_sfl.methods import GAS, SFL, MiniBatchSFL, SplitMethod
from tests.equivalence.test_one_client import forked
from tests.tiny import METHODS, Rows, build, network, rows, sgd, stretches

SIZES = (9, 12, 7, 10, 8)
NAMES = [check.name for check in CHECKS]


def bench(cls: type[SplitMethod], net: Any = network, cut_layer: str = "relu1", **options: Any) -> Bench:
    """A bench on five clients; every method is made anew, network and all."""
    given = {"batch_size": 4, "participants": 3, **options}

    def make(changes: Mapping[str, Any]) -> SplitMethod:
        return build(cls, net(), cut_layer, **{**given, **changes})

    return Bench(make, rows(SIZES), precision="32-true", accelerator="cpu")


def findings(made: Bench, names: Collection[str] = NAMES) -> dict[str, Finding]:
    made.grow()
    chosen = [check for check in CHECKS if check.name in names]
    return {finding.check.name: finding for finding in examine(made, chosen)}


def states(found: Mapping[str, Finding]) -> dict[str, str]:
    return {name: finding.state for name, finding in found.items()}


def failed(found: Mapping[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.state == "failed"}


# --- what is sound ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [pytest.param(cls, marks=() if cls is GAS else pytest.mark.slow) for cls in METHODS])
def test_nothing_fails_for_the_methods_that_come_along(cls: type[SplitMethod]) -> None:
    found = findings(bench(cls, client_optimizer=sgd(0.1, 0.9), server_optimizer=sgd(0.1, 0.9)))
    assert failed(found) == set(), [finding.line() for finding in found.values() if finding.state == "failed"]
    assert list(states(found).values()).count("ok") >= 13
    for finding in found.values():
        assert bool(finding.difference) == (finding.state == "ok")
        assert finding.reason or finding.state == "ok"


def test_lines_that_apply_to_minibatch_sfl() -> None:
    """All but the fingerprints, as these data were not dealt by a partition."""
    found = states(findings(bench(MiniBatchSFL)))
    assert found == {**dict.fromkeys(NAMES, "ok"), **dict.fromkeys(("engine", "fingerprints"), "not applicable")}


def rich() -> nn.Module:
    return network(dropout=0.3, norm=True)


@pytest.mark.parametrize("cls", [SFL, pytest.param(MiniBatchSFL, marks=pytest.mark.slow)])
def test_layers_that_draw_or_couple_rows_leave_three_lines_without_meaning(cls: type[SplitMethod]) -> None:
    found = findings(bench(cls, rich))
    assert failed(found) == set()
    left = {name for name, state in states(found).items() if state == "not applicable"}
    assert left == {"joint_step", "denominator", "relabelling", "engine", "fingerprints"}
    assert "batch normalisation" in found["joint_step"].reason


def test_two_tensors_may_cross() -> None:
    found = findings(bench(MiniBatchSFL, forked, "lower"))
    expected = {**dict.fromkeys(NAMES, "ok"), **dict.fromkeys(("engine", "fingerprints"), "not applicable")}
    assert states(found) == expected


def test_sequences_of_characters() -> None:
    """Inputs are codes, every position has a label: nothing but the NaN in the inputs is left out."""
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(0, 7, (sum(SIZES), 6), generator=draw)
    data = Rows(text[:, :-1].clone(), text[:, 1:].clone(), stretches(SIZES), num_classes=7)

    def net() -> nn.Module:
        torch.default_generator.manual_seed(3)
        return CharLSTM(7, embedding=3, hidden=5)

    made = bench(MiniBatchSFL, net, "lstm1")
    made.data, made.few = data, few_rows(data, 4, 8)
    found = findings(made)
    assert states(found) == {
        **dict.fromkeys(NAMES, "ok"),
        **dict.fromkeys(("engine", "fingerprints"), "not applicable"),
    }
    assert found["finite"].reason == "NaN in the loss"
    assert found["denominator"].reason.startswith("batches of 40, 35, 35, losses divided by 110, 110, 110")


def test_clients_in_one_stroke_are_clients_one_after_another() -> None:
    found = findings(bench(MiniBatchSFL, client_engine="stacked"))
    assert failed(found) == set()
    assert found["engine"].state == "ok"


def test_own_batch_norm_layers_of_the_clients_are_no_failure() -> None:
    assert failed(findings(bench(SFL, rich, bn_buffers="local"))) == set()


def test_the_denominators_are_told() -> None:
    told = {cls: findings(bench(cls), ["denominator"])["denominator"].reason for cls in (SFL, MiniBatchSFL)}
    assert told[SFL] == "batches of 8, 7, 7, losses divided by 8, 7, 7"
    assert "divided by 22, 22, 22, then gradients times 2.75, 3.14, 3.14" in told[MiniBatchSFL]


# --- methods that are broken ------------------------------------------------------------------------------------------


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

    def put_together(self, states: Sequence[State], weights: Sequence[float]) -> None:
        super().put_together(states, weights)
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


# --- networks that are broken -----------------------------------------------------------------------------------------


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
