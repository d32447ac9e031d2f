"""The tables of the FedAvg paper: rounds to a target, what is trained next, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fedavg_tables import paper, run
from benchmarks.fedavg_tables.cells import GRID, Run, neighbours, participants_of
from benchmarks.fedavg_tables.planning import Search, at_rates, in_order, minutes_left, next_run, queue, search_of
from benchmarks.fedavg_tables.store import Result, Store, key_of
from benchmarks.fedavg_tables.training import Limits, Race, telling
from benchmarks.fedavg_tables.variants import varied
from lightning_sfl.backbones import MLP
from lightning_sfl.records.curves import Point, crossing
from tests.benchmarks.made_tables import CELLS, IID_CELL, put

# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "rounds"),
    [
        ([(1, 0.9), (2, 0.96), (3, 0.98)], 2.5),
        ([(1, 0.9), (2, 0.96), (3, 0.93), (4, 0.98)], 3.5),  # what was reached before counts, from the round before on
        ([(1, 0.9), (5, 0.96), (10, 0.98)], 7.5),
        ([(1, 0.97), (2, 0.98)], 1),
        ([(1, 0.5), (2, 0.9699)], None),
        ([], None),
    ],
)
def test_rounds_to_target(curve: list[Point], rounds: float | None) -> None:
    found = Result(Run(IID_CELL, 0.1, 0), "reached", 4, curve, 0.0).rounds_to(0.97)
    assert found == (None if rounds is None else pytest.approx(rounds))


def test_what_is_kept_of_a_curve_has_the_same_crossings() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        curve = [(x + 1.0, y) for x, y in enumerate(np.minimum(rng.random(30), np.linspace(0.1, 1, 30)).tolist())]
        kept = telling(curve)
        assert set(kept) <= set(curve)
        assert kept[-1] == curve[-1]
        for target in rng.random(10):
            assert crossing(kept, target) == crossing(curve, target)
    assert len(telling([(x, 0.5) for x in range(100)])) == 2


# --- the paper --------------------------------------------------------------------------------------------------------


def test_every_figure_of_the_paper_has_a_cell() -> None:
    assert [len(table.entries) for table in paper.TABLES.values()] == [40, 18, 12, 9, 10]
    shared = [entry for entry in paper.TABLES["table2"].entries if entry.cell.name == "cnn-iid-C0.1-E5-B10"]
    assert [entry.published for entry in shared] == [20]
    assert shared[0].cell in paper.TABLES["table1"].cells
    definitions = [json.dumps(cell.definition()) for cell in CELLS.values()]
    assert len(set(definitions)) == len(definitions) == len(CELLS)
    assert {"cnn-iid-fedsgd", "lstm-noniid-C0.1-E5-B10", "cifar-sgd"} <= set(CELLS)
    assert {cell.start_rate for cell in CELLS.values()} <= set(GRID)


def test_a_variant_is_a_cell_of_its_own_and_leaves_the_others_as_they_were() -> None:
    first, *others = paper.TABLES["conditions"].cells
    assert first == IID_CELL
    assert {"start", "inputs"}.isdisjoint(first.definition())
    assert others[0].name == "2nn-iid-C0.1-B10-glorot"
    assert others[0].definition() == first.definition() | {"start": "glorot"}
    assert others[-1].definition() == first.definition() | {"start": "truncated", "inputs": "standard"}
    assert {cell.work for cell in others} == {first.work}


@pytest.mark.parametrize(
    ("start", "deviation", "bias"),
    [
        ("pytorch", (3 * 200) ** -0.5, None),  # uniform within 1 / sqrt(200)
        ("glorot", (2 / 400) ** 0.5, 0.0),
        ("he", (2 / 200) ** 0.5, 0.0),
        ("small", 0.01, 0.0),
        ("truncated", 0.1 * 0.8796, 0.1),  # of a normal cut off at two deviations
    ],
)
def test_how_weights_begin(start: str, deviation: float, bias: float | None) -> None:
    torch.manual_seed(0)
    network = varied(MLP(), start, "unit")
    assert isinstance(network, MLP)
    assert network.fc2.weight.std().item() == pytest.approx(deviation, rel=0.02)
    if bias is not None:
        assert all((layer.bias == bias).all() for layer in (network.fc1, network.fc2, network.head))


def test_inputs_of_mean_zero_and_deviation_one() -> None:
    network = MLP()
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(varied(network, "pytorch", "standard")(x), network((x - 0.1307) / 0.3081))


def test_clients_of_a_share() -> None:
    assert [participants_of(share, 100) for share in (0.0, 0.1, 0.29, 0.5, 1.0)] == [1, 10, 29, 50, 100]


# --- the search -------------------------------------------------------------------------------------------------------


def test_the_search_climbs_to_a_rate_between_two_worse_ones(tmp_path: Path) -> None:
    store, needed = Store(tmp_path), {0.1: 60.0, 0.215: 40.5, 0.464: 30.0, 1.0: None, 0.0464: 90.0}
    cell, tried = replace(IID_CELL, start_rate=0.1), []
    for found, limits in queue(store, [cell], [0]):
        tried.append(found.rate)
        if found.rate == 0.464:
            assert limits.rounds == 41
            assert limits.leader[0] == (1.0, 0.5)
        put(store, cell, found.rate, found.seed, needed[found.rate])
    assert tried == [0.1, 0.215, 0.464, 1.0]
    assert search_of(store, cell, 0).best == 0.464


def test_the_search_can_be_put_off(tmp_path: Path) -> None:
    store, tried = Store(tmp_path), []
    for found, _ in queue(store, [IID_CELL, CELLS["2nn-iid-C0.2-B10"]], [0, 1], tries=2):
        tried.append((found.cell.fraction, found.rate, found.seed))
        put(store, found.cell, found.rate, found.seed, 40.0)
    assert tried == [(0.1, 0.215, 0), (0.1, 0.464, 0), (0.2, 0.215, 0), (0.2, 0.464, 0)]


def test_given_rates_are_trained_to_the_end_whichever_leads(tmp_path: Path) -> None:
    store, tried = Store(tmp_path), []
    put(store, IID_CELL, 0.215, 0, 40.0)
    put(store, IID_CELL, 0.1, 0, None, "abandoned")
    for found, limits in at_rates(store, [IID_CELL], [0, 1], [0.1, 0.215]):
        tried.append((found.rate, found.seed))
        assert (limits.rounds, limits.leader) == (IID_CELL.cap, [])
        put(store, IID_CELL, found.rate, found.seed, 60.0)
    assert tried == [(0.1, 0), (0.1, 1), (0.215, 1)]
    assert search_of(store, IID_CELL, 0).results[0.1].rounds_to(0.97) == pytest.approx(60, abs=0.01)


def test_the_search_ends_at_the_edge_of_the_grid_and_leaves_what_diverges(tmp_path: Path) -> None:
    store, cell = Store(tmp_path), replace(IID_CELL, start_rate=4.64)
    tried = []
    for found, _ in queue(store, [cell], [0]):
        tried.append(found.rate)
        put(store, cell, found.rate, 0, None, "diverged")
    assert tried == list(reversed(GRID))
    assert search_of(store, cell, 0).best is None
    assert next_run(store, cell, 1, 0) is None
    assert neighbours(GRID[0]) == [GRID[1]]


def test_where_no_rate_gets_there_the_most_accurate_leads() -> None:
    runs = {
        rate: Result(Run(IID_CELL, rate, 0), end, 9, [(1.0, best)], 0.0)
        for rate, end, best in ((0.1, "capped", 0.90), (0.215, "capped", 0.92), (0.464, "diverged", 0.95))
    }
    search = Search(IID_CELL, runs)
    assert (search.best, search.next_rate, search.limits().rounds) == (0.215, None, IID_CELL.cap)


def test_other_seeds_wait_for_the_rate_and_are_trained_at_it(tmp_path: Path) -> None:
    store, order = Store(tmp_path), []
    cells = [CELLS["2nn-iid-C0.1-B10"], CELLS["2nn-iid-C0.2-B10"]]
    for found, limits in queue(store, cells, [3, 5]):
        order.append((found.cell.name[8:12], found.rate, found.seed))
        assert found.seed == 3 or (limits.rounds, limits.leader) == (found.cell.cap, [])
        put(store, found.cell, found.rate, found.seed, 40 + abs(found.rate - 0.215))
    names = [(name, seed) for name, _, seed in order]
    assert names == [("C0.1", 3)] * 3 + [("C0.2", 3)] * 3 + [("C0.1", 5), ("C0.2", 5)]
    assert {rate for _, rate, seed in order if seed == 5} == {0.215}
    assert list(queue(store, cells, [3, 5])) == []


def test_a_rate_is_abandoned_when_it_can_no_longer_win_or_is_clearly_worse() -> None:
    leader = [(10.0, 0.90), (20.0, 0.96)]
    race = Race(IID_CELL, Limits(43, leader), None, lambda outcome: None)
    race.outcome.curve = [(1.0, 0.91)]
    assert race.end_of(19) == "unfinished"
    assert race.end_of(30) == "unfinished"  # 0.91 is above what the leader had at 15
    assert race.end_of(40) == "abandoned"  # the leader had 0.96 at 20
    race.outcome.curve = [(1.0, 0.965)]
    assert (race.end_of(42), race.end_of(43)) == ("unfinished", "abandoned")
    race.outcome.curve = [(43.0, 0.97)]
    assert race.end_of(43) == "reached"
    race.limits, race.outcome.curve = Limits(10**6), [(1.0, 0.9)]
    assert (race.end_of(IID_CELL.cap - 1), race.end_of(IID_CELL.cap)) == ("unfinished", "capped")


def test_the_plan_counts_what_is_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    assert minutes_left(store, IID_CELL, [0, 1]) is None
    store.add_time(IID_CELL, 0.6)
    assert key_of(IID_CELL) == key_of(CELLS["2nn-noniid-C0.1-B10"])
    assert minutes_left(store, IID_CELL, [0, 1]) == pytest.approx((2.3 + 1) * 87 * 0.6 / 60)
    for rate, rounds in ((0.215, 40.0), (0.464, 41.0), (0.1, 55.0)):
        put(store, IID_CELL, rate, 0, rounds)
    assert minutes_left(store, IID_CELL, [0, 1]) == pytest.approx(40 * 0.6 / 60)
    put(store, IID_CELL, 0.215, 1, 44.0)
    assert minutes_left(store, IID_CELL, [0, 1]) == 0
    assert in_order([CELLS["cnn-iid-C1.0-E5-B10"], IID_CELL], store)[0] == IID_CELL


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["table9"], "invalid choice: 'table9'"),
        (["table1", "--cells", "2nn-iid-C0.1-B11"], "did you mean 2nn-iid-C0.1-B10?"),
        (["table1", "--seeds", "0,0"], "seeds='0,0' is not allowed"),
        (["table1", "--seeds", "x"], "seeds='x' is not allowed"),
        (["table1", "--minutes", "0"], "minutes=0.0 is not allowed"),
        (["table1", "--tries", "0"], "tries=0 is not allowed"),
        (["table1", "--minutes", "nan"], "minutes=nan is not allowed"),
        (["table1", "--rates", "0.1,0.3"], "rates='0.3' is not allowed: one of 0.01, 0.0215"),
        (["table1", "--data", "nowhere"], "data='nowhere' is not allowed: a folder with mnist in it"),
    ],
    ids=str,
)
def test_is_refused_in_one_line(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main([*arguments, "--out", str(tmp_path / "results")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_the_plan_lists_every_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["all", "--plan", "--out", str(tmp_path / "results")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("2nn-iid-C0.1-B10 ")
    assert {line.split()[0] for line in lines[1:-1]} == set(CELLS)
    assert not (tmp_path / "results").exists()
