"""Runs of the FedAvg tables: stopped, killed, continued, and ended where they should."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.fedavg_tables.cells import Run
from benchmarks.fedavg_tables.timing import round_seconds
from benchmarks.fedavg_tables.training import InTurn, Limits, is_near, method_of, quiet_trainer, train
from lightning_sfl.data import FederatedData, Synthetic
from lightning_sfl.methods import FedAvg
from tests.benchmarks.made_tables import CELLS, IID_CELL

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """
import sys
from dataclasses import replace
from pathlib import Path
from benchmarks.fedavg_tables import training
from tests.benchmarks.test_fedavg_tables_runs import IID_CELL, made_up
from benchmarks.fedavg_tables.cells import Run
training.SAVE_EVERY_S = 0.0
cell = replace(IID_CELL, fraction=0.3, targets=(2.0,), cap=10**6)
training.train(Run(cell, 0.1, 0), made_up(), training.Limits(10**6), Path(sys.argv[1]), lambda outcome: None)
"""


def made_up() -> FederatedData:
    """Made-up digits of MNIST's shape."""
    source = Synthetic(rows=200, test_rows=100, features=[1, 28, 28], noise=8.0)
    data = FederatedData(source, num_clients=10, val_fraction=0.0, eval_set="test")
    data.setup()
    return data


@pytest.fixture(scope="module")
def toy() -> FederatedData:
    return made_up()


def weights_of(method: FedAvg) -> list[torch.Tensor]:
    return [*method.client_half.state_dict().values(), *method.server_half.state_dict().values()]


def test_a_run_that_was_interrupted_is_the_same_run(toy: FederatedData, tmp_path: Path) -> None:
    cell = replace(IID_CELL, fraction=0.3, targets=(2.0,), cap=7)
    whole = train(Run(cell, 0.1, 0), toy, Limits(7), None, lambda outcome: None)
    assert (whole.end, whole.rounds, [x for x, _ in whole.curve]) == ("capped", 7, [1, 5])
    path, sittings = tmp_path / "run.ckpt", []
    while not sittings or sittings[-1].end == "unfinished":
        sittings.append(train(Run(cell, 0.1, 0), toy, Limits(7, deadline=0.0), path, lambda outcome: None))
    assert [one.rounds for one in sittings] == [1, 2, 3, 4, 5, 6, 7]
    assert sittings[-1].curve == whole.curve
    assert sittings[-1].cpu_s > sittings[0].cpu_s > 0


def test_a_run_that_was_killed_is_the_same_run(toy: FederatedData, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    words = [sys.executable, "-c", ENDLESS, str(path)]
    with subprocess.Popen(words, cwd=ROOT) as process:
        begun = time.monotonic()
        while not path.is_file() and time.monotonic() - begun < 60 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    rounds = torch.load(path, weights_only=True)["epoch"]
    cell = replace(IID_CELL, fraction=0.3, targets=(2.0,), cap=rounds + 7)
    whole, rest = (train(Run(cell, 0.1, 0), toy, Limits(10**6), where, lambda outcome: None) for where in (None, path))
    assert rest.curve == whole.curve
    assert (rest.rounds, rest.end) == (cell.cap, "capped")


def test_a_variant_begins_with_its_own_weights_and_inputs() -> None:
    def network(**variant: str) -> nn.Module:
        return method_of(Run(replace(IID_CELL, **variant), 0.1, 0), 100, None).backbone[0]

    usual, x = network(), torch.rand(3, 1, 28, 28)
    assert torch.equal(network(inputs="standard")(x), usual((x - 0.1307) / 0.3081))
    assert network(start="small").fc2.weight.std() < 0.011 < usual.fc2.weight.std()


def test_near_the_target_every_round_is_judged_and_the_run_ends_there(toy: FederatedData) -> None:
    cell = replace(IID_CELL, fraction=0.3, targets=(0.001,), cap=7)
    assert train(Run(cell, 0.1, 0), toy, Limits(7), None, lambda outcome: None).rounds == 1
    best = train(Run(replace(cell, targets=(2.0,)), 0.1, 0), toy, Limits(7), None, lambda outcome: None).curve[0][1]
    near = train(Run(replace(cell, targets=(best + 0.005,), cap=3), 0.1, 0), toy, Limits(3), None, lambda outcome: None)
    assert [x for x, _ in near.curve] == list(range(1, near.rounds + 1))
    assert near.rounds > 1


@pytest.mark.parametrize(("target", "far"), [(0.54, 0.53), (0.97, 0.96), (0.99, 0.98667)])
def test_where_near_begins(target: float, far: float) -> None:
    assert not is_near(far - 1e-4, target)
    assert is_near(far + 1e-4, target)


def test_a_rate_that_explodes_is_called_diverged(toy: FederatedData) -> None:
    cell = replace(IID_CELL, fraction=0.3, epochs=20, targets=(2.0,), cap=3)
    assert train(Run(cell, 1e20, 0), toy, Limits(3), None, lambda outcome: None).end == "diverged"


def test_clients_in_turn_are_fedavg_bit_for_bit(toy: FederatedData) -> None:
    cell, found = replace(CELLS["cnn-iid-C0.1-E5-B10"], fraction=0.3, epochs=1, batch_size=20), []
    for kind in (InTurn, FedAvg):
        method = method_of(Run(cell, 0.1, 0), 10, None)
        assert type(method) is InTurn
        method.__class__ = kind
        quiet_trainer(1, [], limit_val_batches=0).fit(method, toy)
        found.append(weights_of(method))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_order_of_channels_in_memory_is_a_matter_of_rounding(toy: FederatedData) -> None:
    cell, found = replace(CELLS["cnn-iid-C0.1-E5-B10"], fraction=0.3, epochs=1, batch_size=20), []
    for layout in (torch.channels_last, torch.contiguous_format):
        method = method_of(Run(cell, 0.1, 0), 10, None)
        if layout == torch.contiguous_format:
            method.backbone[0].to(memory_format=layout)
        quiet_trainer(2, [], limit_val_batches=0).fit(method, toy)
        assert method.slots[2].conv1.weight.stride(1) == (1 if layout == torch.channels_last else 25)
        found.append(weights_of(method))
    assert all(torch.allclose(one, other, rtol=0, atol=1e-5) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["2nn-iid-C0.1-B10", "cnn-iid-fedsgd"])
def test_the_time_of_a_round_is_measured(toy: FederatedData, name: str) -> None:
    assert 0 < round_seconds(CELLS[name], toy) < 60
