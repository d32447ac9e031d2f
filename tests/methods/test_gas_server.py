"""GAS: the server's step, its buffer, generated rows and the clients' adjusted loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sfl.core.activation_buffer import Generation
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientStep, CutGradient, ServerStep
from lightning_sfl.core.progress_weight import ProgressWeight
from lightning_sfl.methods import GAS, SplitMethod
from tests.equivalence.test_one_client import forked
from tests.methods.gas_runs import OFF, SIZES, WHOLE, run
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, weights, whole


class Server(Recorder):
    """The server half at every client step and every server step."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[str, dict[str, Tensor]]] = []

    def on_cut_gradient(self, module: SplitMethod, event: CutGradient) -> None:
        self.states.append(("cut", weights(module.server_half)))

    def on_client_step(self, module: SplitMethod, event: ClientStep) -> None:
        self.states.append(("client", weights(module.server_half)))

    def on_server_step(self, module: SplitMethod, event: ServerStep) -> None:
        self.states.append(("server", weights(event.server_half)))


@pytest.mark.parametrize(("buffers", "moved"), [("frozen", False), ("trained", True)])
def test_the_server_half_stands_still_between_its_steps(buffers: str, moved: bool) -> None:
    server = Server()
    method = build(GAS, network(norm=True), participants=3, batch_size=4, local_server_buffers=buffers)
    fit(method, rows(SIZES), 2, [server])
    changed = [
        differing(before, after) for (_, before), (kind, after) in zip(server.states, server.states[1:], strict=False)
        if kind != "server"
    ]  # fmt: skip
    assert any(changed) == moved
    assert {name for names in changed for name in names} <= {
        f"bn2.{b}" for b in ("running_mean", "running_var", "num_batches_tracked")
    }
    kinds = [kind for kind, _ in server.states]
    assert kinds[:7] == ["cut", "client"] * 3 + ["server"]


def test_clients_learn_from_their_own_adjusted_mean_loss() -> None:
    _, recorder = run(2, sizes=(6, 6, 6), generation=OFF)
    for event in recorder.of(CutGradient):
        residual = event.logits.softmax(-1) - torch.nn.functional.one_hot(event.labels, 4)
        torch.testing.assert_close(event.logits_gradient, residual / event.rows, rtol=0, atol=1e-7)
        assert event.sent is event.raw or all(a is b for a, b in zip(event.sent, event.raw, strict=True))
        assert event.replayed == 0
    adjusted, plain = (whole(run(2, prior_exponent=e)[0]) for e in (1.0, 0.0))
    assert differing(adjusted, plain) != []


def test_duplicated_rows_leave_the_clients_step() -> None:
    moves = []
    for repeats in (1, 2):
        data = rows((4,), dtype=torch.float64)
        x, y = data.population.x.repeat(repeats, 1), data.population.y.repeat(repeats)
        recorder = Recorder()
        method = build(GAS, network(dtype=torch.float64), batch_size=None, generation=OFF)
        fit(method, type(data)(x, y, [range(4 * repeats)]), 1, [recorder])
        moves.append(recorder.ends[0])
    assert furthest(*moves) < 1e-12


def test_generated_rows_balance_the_servers_batch() -> None:
    method, recorder = run(6, generation=Generation(every=2))
    assert len(method.buffer.statistics.known) == 4
    sizes = [event.rows for event in recorder.of(ServerStep)]
    made = [event.synthetic for event in recorder.of(ServerStep)]
    assert set(sizes[1::2][2:]) == {4 * 4}
    assert all(4 <= count < 16 for count in made[1::2][2:])  # the buffer has 12 rows, and drops what is over 4
    assert set(made[::2]) == {0}
    assert set(sizes[::2]) == {3 * 4}


def test_options_change_what_they_should() -> None:
    plain = whole(run(4, client_optimizer=sgd(0.1, 0.9))[0])
    for option in (
        {"client_momentum": "shared"}, {"arrival": "random"}, {"activation_buffer": 2}, {"model_buffer": 2},
        {"progress_weight": ProgressWeight("uniform")}, {"generation": Generation(covariance="full")},
        {"generation": Generation(overflow="keep")}, {"generation": OFF}, {"participation": "per_round"},
    ):  # fmt: skip
        assert differing(plain, whole(run(4, client_optimizer=sgd(0.1, 0.9), **option)[0])) != [], option
    without = whole(run(4)[0])
    assert differing(without, whole(run(4, client_momentum="shared")[0])) == []


def test_a_tuple_at_the_cut_needs_generation_off() -> None:
    options = {"participants": 2, "batch_size": 4}
    with pytest.raises(ConfigError, match=r"generation.every=1 is not allowed: 0 where a tuple is cut"):
        fit(build(GAS, forked(), "lower", **WHOLE, **options), rows(SIZES))
    recorder = Recorder()
    fit(build(GAS, forked(), "lower", generation=OFF, **options), rows(SIZES), 2, [recorder])
    assert {len(event.sent) for event in recorder.of(CutGradient)} == {2}


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation_buffer", 0), ("model_buffer", 0), ("prior_exponent", -1.0)],
)
def test_ranges(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r} is not allowed: "):
        build(GAS, **{key: value})
    with pytest.raises(ConfigError, match="model_buffer=2 is not allowed: null where"):
        build(GAS, participation="per_round", model_buffer=2)
