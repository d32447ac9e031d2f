"""The tables of the FedAvg paper: rounds to a target, what is trained next, going on after a stop, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fedavg_tables import paper, report, run
from benchmarks.fedavg_tables.cells import GRID, Cell, Run, neighbours, participants_of
from benchmarks.fedavg_tables.claims import NEVER, claims, compared, judged
from benchmarks.fedavg_tables.initialisation import THETAS, between
from benchmarks.fedavg_tables.planning import Search, in_order, minutes_left, next_run, queue, search_of
from benchmarks.fedavg_tables.store import Result, Store, key_of
from benchmarks.fedavg_tables.timing import round_seconds
from benchmarks.fedavg_tables.training import InTurn, Limits, Outcome, Race, method_of, quiet_trainer, telling, train
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.data import FederatedData, Synthetic
from lightning_sfl.methods import FedAvg
from lightning_sfl.records.curves import Point, Spread, crossing

CELLS = {cell.name: cell for table in paper.TABLES.values() for cell in table.cells}
IID_CELL = CELLS["2nn-iid-C0.1-B10"]


def curve_to(rounds: float, target: float = 0.97) -> list[Point]:
    """Straight from 0.5 at round 1 to the target at `rounds`, then one round more."""
    slope = (target - 0.5) / (rounds - 1)
    return [(float(x), 0.5 + slope * (x - 1)) for x in range(1, int(rounds) + 2)]


def put(store: Store, cell: Cell, rate: float, seed: int, rounds: float | None, end: str = "reached") -> None:
    """A finished run on file."""
    store.prepare()
    curve = [(1.0, 0.5), (30.0, 0.9)] if rounds is None else curve_to(rounds, cell.target)
    store.write(Run(cell, rate, seed), Outcome(end, curve, int(curve[-1][0]), 10.0, 20.0), "abcd1234")


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
    assert [len(table.entries) for table in paper.TABLES.values()] == [40, 18, 12, 9]
    shared = [entry for entry in paper.TABLES["table2"].entries if entry.cell.name == "cnn-iid-C0.1-E5-B10"]
    assert [entry.published for entry in shared] == [20]
    assert shared[0].cell in paper.TABLES["table1"].cells
    definitions = [json.dumps(cell.definition()) for cell in CELLS.values()]
    assert len(set(definitions)) == len(definitions) == len(CELLS)
    assert {"cnn-iid-fedsgd", "lstm-noniid-C0.1-E5-B10", "cifar-sgd"} <= set(CELLS)
    assert {cell.start_rate for cell in CELLS.values()} <= set(GRID)


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


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy() -> FederatedData:
    """Made-up digits of MNIST's shape."""
    source = Synthetic(rows=200, test_rows=100, features=[1, 28, 28], noise=8.0)
    data = FederatedData(source, num_clients=10, val_fraction=0.0, eval_set="test")
    data.setup()
    return data


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


def test_near_the_target_every_round_is_judged_and_the_run_ends_there(toy: FederatedData) -> None:
    cell = replace(IID_CELL, fraction=0.3, targets=(0.001,), cap=7)
    assert train(Run(cell, 0.1, 0), toy, Limits(7), None, lambda outcome: None).rounds == 1
    best = train(Run(replace(cell, targets=(2.0,)), 0.1, 0), toy, Limits(7), None, lambda outcome: None).curve[0][1]
    near = train(Run(replace(cell, targets=(best + 0.005,), cap=3), 0.1, 0), toy, Limits(3), None, lambda outcome: None)
    assert [x for x, _ in near.curve] == list(range(1, near.rounds + 1))
    assert near.rounds > 1


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


@pytest.mark.parametrize("name", ["2nn-iid-C0.1-B10", "cnn-iid-fedsgd"])
def test_the_time_of_a_round_is_measured(toy: FederatedData, name: str) -> None:
    assert 0 < round_seconds(CELLS[name], toy) < 60


def test_networks_on_the_line_between_two() -> None:
    one, other = ({"w": torch.tensor([value])} for value in (2.0, 4.0))
    assert [float(between(one, other, theta)["w"]) for theta in (0.0, 0.5, 1.0, -0.5)] == [4, 3, 2, 5]
    assert (THETAS[0], THETAS[-1], len(THETAS)) == (-0.2, 1.2, 15)


# --- files and page ---------------------------------------------------------------------------------------------------


def test_a_result_of_another_cell_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, IID_CELL, 0.1, 0, 40.0)
    with pytest.raises(ConfigError, match=r"2nn-iid-C0\.1-B10_lr0\.1_seed0 was trained for another cell"):
        store.read(Run(replace(IID_CELL, targets=(0.98,)), 0.1, 0))
    store.path(Run(IID_CELL, 0.1, 0)).write_text("{")
    with pytest.raises(ConfigError, match="is not a result"):
        store.read(Run(IID_CELL, 0.1, 0))


def test_what_is_measured_on_file_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, IID_CELL, 0.1, 0, 40.5)
    result = store.read(Run(IID_CELL, 0.1, 0))
    assert result is not None
    assert result.rounds_to(0.97) == pytest.approx(40.5, abs=0.01)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["2nn-iid-C0.1-B10_lr0.1_seed0.json"]


def test_the_page(tmp_path: Path) -> None:
    store, page = Store(tmp_path / "results"), tmp_path / "page.md"
    for rate, seed, rounds in ((0.215, 0, 40.0), (0.464, 0, 41.0), (0.1, 0, 55.0), (0.215, 1, 44.0)):
        put(store, IID_CELL, rate, seed, rounds)
    put(store, CELLS["2nn-iid-C0.0-B10"], 0.215, 0, 120.0)
    put(store, CELLS["2nn-noniid-C0.1-B10"], 0.0464, 0, None, "capped")
    store.add_time(CELLS["cnn-iid-C1.0-E5-B10"], 430.0)
    page.write_text(f"# Mine\n\nwords\n\n{report.BEGIN}\nold\n{report.END}\n\nmore words\n")
    report.write_report(store, [0, 1, 2], page)
    text = page.read_text()
    assert text.startswith("# Mine\n\nwords\n")
    assert text.endswith(f"{report.END}\n\nmore words\n")
    assert "\nold\n" not in text
    assert "| 2NN C=0.1, IID B=10 | 87 | 42 \u00b1 3 | 0.48 | 2 | 0.215 | 0.1: 55; 0.215: 40; 0.464: 41 |" in text
    assert "| 2NN C=0.0, IID B=10 | 316 | 120 | 0.38 | 1 | 0.215 | 0.215: 120; search not over |" in text
    assert "| 2NN C=0.1, non-IID B=10 | 664 | not in 30 rounds (best 0.9000) |  | 1 | 0.0464 | 0.0464: capped" in text
    assert "| CNN C=1.0, IID B=10 | 16 | not run: 8.2 h (16 rounds of 430 s a training) | | | |  |" in text
    assert "| CNN C=0.5, IID B=10 | 18 | not run, time not measured | | | |  |" in text
    assert "**One client a round (C=0) takes the most rounds (B=10)**: holds (15 of 16 comparisons open)." in text
    assert "- 2NN C=0.1, IID B=10 against 2NN C=0.0: 42 against 120" in text
    assert "- 2NN C=0.1, IID B=10 against non-IID B=10: 42 against not reached" in text
    report.write_report(store, [0, 1, 2], page)
    assert page.read_text() == text


def test_claims_hold_fall_or_stay_open() -> None:
    def by_paper(cell: Cell, target: float) -> Spread:
        found = [e for table in paper.TABLES.values() for e in table.entries if (e.cell, e.target) == (cell, target)]
        return NEVER if found[0].published is None else Spread(float(found[0].published), None, 1, 1)

    verdicts = [claim.verdict for claim in claims(by_paper)]
    assert verdicts == [
        "does not hold",  # the paper's own: CNN non-IID takes 200 rounds at C=0.2 and 261 at C=0.5
        "holds",
        "holds",
        "does not hold",  # nor is this one monotone: 65 rounds at u=12, 234 at u=20
        "does not hold",
        "does not hold",  # non-IID E=5 B=inf takes 1000 rounds, FedSGD 483
        "holds",
        "does not hold (2 of 20 comparisons open)",  # 2NN C=0.2 B=inf
        "holds",
    ]
    assert {claim.verdict for claim in claims(lambda cell, target: None)} == {"open, cells are missing"}
    near, far = Spread(40.0, 3.0, 2, 2), Spread(42.0, 1.0, 2, 2)
    assert [compared(near, far), compared(far, near), compared(near, None)] == ["unclear", "unclear", "open"]
    assert [compared(near, NEVER), compared(NEVER, near), compared(NEVER, NEVER)] == ["holds", "fails", "open"]
    assert judged("x", [("a", near, far), ("b", near, NEVER)]).verdict == "holds but where seeds differ as much"


def test_averaged_networks_on_the_page(tmp_path: Path) -> None:
    losses = {"alike": [1 - 0.5 * (t == 0.5) for t in THETAS], "apart": [1 + (t == 0.5) for t in THETAS]}
    (tmp_path / "init.json").write_text(json.dumps({"0": losses, "1": {**losses, "apart": losses["alike"]}}))
    text = report.init_part(Store(tmp_path))
    assert "| 0.5 | 0.500 \u00b1 0.000 | 1.250 \u00b1 1.061 |" in text
    assert "below both parents' in 2 of 2 seeds" in text
    assert "above both parents' in 1 of 2" in text


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
