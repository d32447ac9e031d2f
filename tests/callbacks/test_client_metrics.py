"""Client metrics against plain evaluation, on runs of every method; and that nothing is changed by looking."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_sfl.callbacks import ClientMetrics, RoundRecord
from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.clock import Cell, costs_of, durations
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd
from lightning_sfl.core.population import Population
from lightning_sfl.measures.judged import Spread, spread
from lightning_sfl.methods import GAS, SFL, Centralized, FedAvg, HoloGrad, SplitMethod
from lightning_sfl.records.round_log import read_rounds
from tests import tiny
from tests.every_method import METHODS, rich_of
from tests.tiny import Recorder, Rows, build, differing, network, rows, sgd, weights, whole

SIZES, KEPT = (5, 4, 9, 6), (2, 1, 3, 0)
State = dict[str, Tensor]


def people(dtype: torch.dtype = torch.float64, sizes: tuple[int, ...] = SIZES) -> Rows:
    """Clients that keep the last of their rows; the last one keeps none."""
    data = rows(sizes, dtype=dtype)
    own = data.population.rows
    trained = tuple(r[: len(r) - k] for r, k in zip(own, KEPT, strict=True))
    kept = tuple(r[len(r) - k :] for r, k in zip(own, KEPT, strict=True))
    data.population = Population(data.population.x, data.population.y, trained, kept)
    return data


class Ends(Recorder):
    """Whole networks of the clients at their ends, by round and client."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[int, int], State] = {}

    def on_client_end(self, module: SplitMethod, event: ClientEnd) -> None:
        super().on_client_end(module, event)
        half = module.server_half if event.server_half is None else event.server_half
        self.found[event.round, event.client_id] = weights(event.client_half) | weights(half)


def run(
    folder: Path,
    cls: Any,
    metrics: ClientMetrics | None = None,
    data: Rows | None = None,
    rounds: int = 2,
    **options: Any,
) -> tuple[list[dict[str, Any]], SplitMethod, Ends]:
    data, ends = people() if data is None else data, Ends()
    net = network(norm=options.pop("norm", False), dtype=data.population.x.dtype)
    method = build(cls, net, **{"batch_size": 3, "participants": 3, **options})
    watching = [metrics or ClientMetrics(), ends, RoundRecord()]
    precision = "64-true" if data.population.x.dtype == torch.float64 else "32-true"
    tiny.trainer(rounds, watching, default_root_dir=folder, precision=precision).fit(method, data)
    return read_rounds(folder / "rounds.jsonl"), method, ends


@torch.no_grad()
def plain(state: State, data: Rows, owned: np.ndarray, norm: bool = False) -> dict[str, float]:
    """Loss and accuracy of the network with these weights, in the shortest way; nothing without rows."""
    if not len(owned):
        return {}
    net = network(norm=norm, dtype=data.population.x.dtype)
    net.load_state_dict(state)
    logits, labels = net.eval()(data.population.x[owned]), data.population.y[owned]
    return {"loss": float(cross_entropy(logits, labels)), "acc": float((logits.argmax(1) == labels).double().mean())}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("cls", [FedAvg, SFL])
def test_local_and_merged_models_on_each_clients_rows(cls: type[SplitMethod], norm: bool, tmp_path: Path) -> None:
    data = people()
    found, method, ends = run(tmp_path, cls, data=data, norm=norm)
    kinds = {"train": data.population.rows, "val": data.population.kept}
    for record in found:
        assert {*record["clients"]} == {str(c) for r, c in ends.found if r == record["round"]}
        for client, fields in record["clients"].items():
            state = ends.found[record["round"], int(client)]
            for kind, owned in kinds.items():
                for name, value in plain(state, data, owned[int(client)], norm).items():
                    assert fields[f"local_{kind}_{name}"] == pytest.approx(value, abs=1e-12)
    last, state = found[-1], whole(method)
    assert [*last["population"]] == ["0", "1", "2", "3"]
    for client, fields in last["population"].items():
        assert fields["selected"] is (client in last["clients"])
        for kind, owned in kinds.items():
            for name, value in plain(state, data, owned[int(client)], norm).items():
                assert fields[f"merged_{kind}_{name}"] == pytest.approx(value, abs=1e-12)
    assert "merged_val_acc" not in last["population"]["3"], "it keeps no rows"


def test_mean_worst_and_spread(tmp_path: Path) -> None:
    found, _, _ = run(tmp_path, FedAvg)
    scalars, everyone = found[-1]["scalars"], found[-1]["population"]
    for kind, sizes in (("train", [3, 3, 6, 6]), ("val", [2, 1, 3])):
        losses = [each[f"merged_{kind}_loss"] for each in everyone.values() if f"merged_{kind}_loss" in each]
        right = [each[f"merged_{kind}_acc"] for each in everyone.values() if f"merged_{kind}_acc" in each]
        mean = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes)
        assert scalars[f"client/merged_{kind}_loss_mean"] == pytest.approx(mean, rel=1e-14)
        assert scalars[f"client/merged_{kind}_loss_worst"] == max(losses)
        assert scalars[f"client/merged_{kind}_acc_worst"] == min(right)
        assert scalars[f"client/merged_{kind}_acc_std"] == pytest.approx(pstdev(right), abs=1e-14)


def test_spread_by_hand() -> None:
    assert spread([1.0, 3.0], [1, 3], True) == Spread(2.5, 3.0, 1.0)
    assert spread([1.0, 3.0], [1, 3], False) == Spread(2.5, 1.0, 1.0)
    assert spread([0.25], [7], False) == Spread(0.25, 0.25, 0.0)


@pytest.mark.parametrize("cls", METHODS)
def test_of_every_method_and_looking_changes_nothing(cls: type[SplitMethod], tmp_path: Path) -> None:
    states, generators = [], []
    for place, every in enumerate((0, 1)):
        options = {"client_optimizer": sgd(0.1, 0.9), "server_optimizer": sgd(0.1, 0.9), **rich_of(cls)}
        net, data = network(0.2, norm=True), people(torch.float32, (8, 7, 9, 6))
        method = build(cls, net, **{"participants": 3, "batch_size": 4, **options})
        folder = tmp_path / str(place)
        tiny.trainer(2, [ClientMetrics(every), RoundRecord()], default_root_dir=folder).fit(method, data)
        states.append(whole(method))
        generators.append(torch.get_rng_state())
    assert differing(*states) == []
    assert torch.equal(*generators)
    silent, told = (read_rounds(tmp_path / str(place) / "rounds.jsonl")[-1] for place in (0, 1))
    assert "population" not in silent
    assert not [tag for tag in silent["scalars"] if tag.startswith("client/")]
    assert {"client/merged_train_acc_worst", "client/merged_val_loss_mean"} <= {*told["scalars"]}
    assert any("local_train_acc" in fields for fields in told["clients"].values()) == (cls is not Centralized)
    assert ("client/duration_s_mean" in told["scalars"]) == (cls not in (HoloGrad, Centralized))


def test_who_was_not_there_is_no_participant(tmp_path: Path) -> None:
    """`compare` reads off the records who took part."""
    found, _, ends = run(tmp_path, FedAvg, participants=2)
    for record in found:
        took_part = {client for index, client in ends.found if index == record["round"]}
        assert {int(client) for client in record["clients"]} == took_part
        assert {int(c) for c, fields in record["population"].items() if fields["selected"]} == took_part
    assert len(found[0]["population"]) == 4


# --- time and staleness -----------------------------------------------------------------------------------------------


def test_durations_follow_from_steps_rows_and_the_cell(tmp_path: Path) -> None:
    cell = Cell(compute_flops=(1e6, 1e7))
    found, method, ends = run(tmp_path, SFL, rounds=1, cell=cell, local_epochs=2)
    costs = costs_of(method.client_half, people().example()[:1])
    seconds = []
    for event in ends.of(ClientEnd):
        takes = durations(cell, costs, method.seed, event.client_id, 1, 3)
        wanted = event.steps * 2 * takes.process_s + event.rows * takes.send_batch_s + takes.send_model_s
        assert found[0]["clients"][str(event.client_id)]["duration_s"] == pytest.approx(wanted, rel=1e-12)
        seconds.append(wanted)
    assert found[0]["scalars"]["client/duration_s_mean"] == pytest.approx(fmean(seconds))
    assert found[0]["scalars"]["client/duration_s_max"] == pytest.approx(max(seconds))


def test_who_does_not_finish_is_not_judged_and_sends_nothing(tmp_path: Path) -> None:
    slow = Cell(compute_flops=(1e4, 1e6))
    late = Attendance(overcommit=2.0)
    found, method, ends = run(tmp_path, FedAvg, rounds=4, participants=2, cell=slow, attendance=late, local_epochs=3)
    dropped = 0
    for event in ends.of(ClientEnd):
        fields, pace = found[event.round]["clients"][str(event.client_id)], method.pace(event.client_id)
        assert ("local_train_loss" in fields) == event.finished
        sent = pace.send_s if event.finished else 0.0
        assert fields["duration_s"] == pytest.approx(event.steps * pace.batch_s + sent, rel=1e-12)
        dropped += not event.finished
    assert dropped


def test_staleness_of_each_client(tmp_path: Path) -> None:
    slow = {"cell": Cell(compute_flops=(1e5, 1e7)), "model_buffer": 1, "local_steps": 2}
    found, _, ends = run(tmp_path, GAS, rounds=6, **slow)
    for record in found:
        told = {(e.client_id, e.missed) for e in ends.of(ClientEnd) if e.round == record["round"]}
        assert {(int(key.split(".")[0]), fields["staleness"]) for key, fields in record["clients"].items()} == told
        assert record["scalars"]["client/staleness_max"] == max(missed for _, missed in told)
    assert max(record["scalars"]["client/staleness_max"] for record in found) > 0


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_and_curves(tmp_path: Path) -> None:
    found, _, _ = run(tmp_path, FedAvg, ClientMetrics(every=2, curves=2), rounds=4)
    measured = ["population" in record for record in found]
    assert measured == [True, False, True, False]
    curves = {tag for tag in found[2]["scalars"] if tag.startswith("client_")}
    assert {tag.partition("/")[0] for tag in curves} == {"client_0", "client_1"}
    for client in ("0", "1"):
        fields = found[2]["population"][client] | found[2]["clients"].get(client, {})
        assert curves_of(client, found[2]) == fields
    assert not [tag for tag in found[1]["scalars"] if tag.startswith("client")]


def curves_of(client: str, record: dict[str, Any]) -> dict[str, float]:
    """The scalars of one client, by what its own record calls them."""
    tags = (tag.partition("/") for tag in record["scalars"])
    return {field: record["scalars"][f"{head}/{field}"] for head, _, field in tags if head == f"client_{client}"}


def test_curves_of_who_took_part_and_of_who_did_not(tmp_path: Path) -> None:
    found, _, ends = run(tmp_path, FedAvg, ClientMetrics(curves=4), rounds=4, participants=2)
    for record in found:
        took_part = {client for index, client in ends.found if index == record["round"]}
        assert len(took_part) == 2
        for client in range(4):
            told = curves_of(str(client), record)
            assert told["selected"] == int(client in took_part)
            assert ("duration_s" in told) == ("staleness" in told) == (client in took_part)
            assert type(told["selected"]) is int, "loggers would write True and False"


def test_curves_of_clients_that_come_late_and_come_again(tmp_path: Path) -> None:
    """A curve has one value a round: that of the first visit."""
    slow = {"cell": Cell(compute_flops=(1e5, 1e7)), "model_buffer": 6, "local_steps": 2}
    found, _, _ = run(tmp_path, GAS, ClientMetrics(curves=4), rounds=6, **slow)
    assert any("." in key for record in found for key in record["clients"]), "nobody came twice"
    told = [(record["clients"].get(str(c), {}), curves_of(str(c), record)) for record in found for c in range(4)]
    for fields, curves in told:
        assert {name: curves.get(name) for name in ("staleness", "duration_s")} == {
            name: fields.get(name) for name in ("staleness", "duration_s")
        }
    assert max(curves.get("staleness", 0) for _, curves in told) > 0


def test_some_of_the_rows_are_the_same_ones_in_every_round(tmp_path: Path) -> None:
    """A server and clients that stand still give the same values again; all rows give others."""
    values = {}
    for most in (2, None):
        options = {"client_optimizer": sgd(0.0), "server_optimizer": sgd(0.0)}
        found, _, _ = run(tmp_path / str(most), SFL, ClientMetrics(max_rows=most), **options)
        one, other = (record["population"] for record in found)
        assert {c: {**f, "selected": 0} for c, f in one.items()} == {c: {**f, "selected": 0} for c, f in other.items()}
        values[most] = one["2"]["merged_train_loss"]
    assert values[2] != values[None]


def test_only_rows_that_are_kept(tmp_path: Path) -> None:
    metrics = ClientMetrics(train_rows=False)
    data = people()
    data.client_val_fraction = 0.5
    found, _, _ = run(tmp_path, FedAvg, metrics, data)
    assert not [tag for tag in found[0]["scalars"] if "train_" in tag and tag.startswith("client/")]
    with pytest.raises(ConfigError, match=r"client_metrics.train_rows=False is not allowed: true where data"):
        run(tmp_path, FedAvg, ClientMetrics(train_rows=False))
    for key, value in {"max_rows": 0, "curves": -1, "every": -1}.items():
        with pytest.raises(ConfigError, match=f"{key}={value} is not allowed"):
            ClientMetrics(**{key: value})
