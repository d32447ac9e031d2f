"""The benchmarks run, at tiny sizes; how fast is not asked here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import population, run, throughput
from benchmarks import table as readme_table
from benchmarks.lanes import Lane, Lap, race, ratio, shortest
from benchmarks.table import BEGIN, END
from benchmarks.watching import amortised
from benchmarks.workloads import furthest, workloads
from lightning_sfl.records.compare import compare
from tests.records import made


def test_lanes_take_turns_and_count_only_their_own_laps() -> None:
    order = []

    def going(name: str, laps: int):
        def run(lane: Lane) -> None:
            for _ in range(laps):
                lane.lap()
                order.append(name)
            lane.lap()

        return run

    laps = race({"a": going("a", 3), "b": going("b", 3), "c": going("c", 1)})
    assert order == ["a", "b", "c", "a", "b", "a", "b"]
    assert {name: len(found) for name, found in laps.items()} == {"a": 3, "b": 3, "c": 1}


def test_a_lane_that_fails_ends_the_race() -> None:
    def breaks(lane: Lane) -> None:
        lane.lap()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        race({"a": breaks, "b": lambda lane: lane.lap()})


def test_ratios_are_those_of_neighbours() -> None:
    found = ratio([Lap(2, 1), Lap(9, 1), Lap(4, 4)], [Lap(1, 1), Lap(3, 2), Lap(4, 1)])
    assert (found.median, found.low, found.high, found.cpu, found.pairs) == (2, 1, 3, 1, 3)


def test_of_repeated_races_each_lap_counts_at_its_shortest() -> None:
    races = [{"a": [Lap(2, 1), Lap(3, 3)], "b": [Lap(5, 5)]}, {"a": [Lap(1, 2), Lap(4, 2)], "b": [Lap(6, 4)]}]
    assert shortest(races) == {"a": [Lap(1, 1), Lap(3, 2)], "b": [Lap(5, 4)]}


def test_what_comes_every_ten_rounds_counts_a_tenth() -> None:
    laps = {
        "with": [Lap(90, 90), *[Lap(5 if i % 10 == 0 else 2, 1) for i in range(1, 21)]],
        "without": [Lap(1, 1)] * 21,
    }
    assert amortised(laps, "with", "without").median == pytest.approx(0.9 * 2 + 0.1 * 5)


def test_every_workload_trains_the_same_as_its_plain_loop() -> None:
    rows = throughput.measure(workloads(clients=100, rounds=1, rows_per_client=4, image_rounds=1))
    assert len(rows) == 8
    assert all(0 <= row.details["weights_apart"] <= 1e-9 for row in rows)


def test_a_loop_that_trains_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.workloads.LEARNING_RATE", 0.05)
    with pytest.raises(AssertionError, match="apart"):
        throughput.measure(workloads(clients=100, rounds=1, rows_per_client=2, image_rounds=1)[:1])
    assert furthest({"a": torch.zeros(1)}, {"b": torch.zeros(1)}) == float("inf")


def test_resnet_is_measured_in_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--resnet-rounds=1", "--resnet-batch=2", "--resnet-width=2"]
    rows = run.main(["resnet", *sizes, f"--out={tmp_path}"])
    assert [row.figure.split(":")[0] for row in rows] == ["ResNet-18 SFL", "ResNet-18 USFL"]
    for row in rows:
        shares = row.details["share_of_round"]
        assert list(shares) == ["upload", "answer", "download", "merge", "rest"]
        assert all(share > 0 for share in shares.values())
        assert sum(shares.values()) == pytest.approx(1)
        assert row.details["peak_bytes"] is None
    assert "samples/s, whole network" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="2"):
        run.main(["resnet", "--accelerator=gpu"])
    assert "accelerator=gpu is not allowed: cpu" in capsys.readouterr().err


def test_watching_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run.main(["watching", "--watched-rounds=2", "--watched-repeats=2", "--together", f"--out={tmp_path}"])
    written = json.loads((tmp_path / "latest.json").read_text())
    assert [row["figure"] for row in written["rows"]] == [row.figure for row in rows]
    assert written["machine"]["torch"] == torch.__version__
    assert rows[0].figure in capsys.readouterr().out


def test_populations_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "peak_mb_apart", lambda clients: 100.0 + clients / 1000)
    time, memory, less = population.measure(20, 40, rounds=3, repeats=1)
    assert time.found.pairs == 1
    assert memory.found.median == pytest.approx(100.04 / 100.02)
    assert less.found.median < memory.found.median


@pytest.mark.slow
def test_comparing_is_timed_on_whole_runs(tmp_path: Path) -> None:
    (row,) = run.main(["comparing", "--compared-runs=12", "--compared-rounds=6", "--repeats=1", f"--out={tmp_path}"])
    assert row.figure == "compare, 12 runs of 6 rounds"
    assert row.found.low > 0
    assert row.details["records_mb"] > 0


def runs_of(folder: Path) -> Path:
    for method, base in (("SFL", 0.7), ("FedAvg", 0.5)):
        for seed in (0, 1):
            made.run(folder / f"{method}-{seed}", [base, base + 0.1, base + 0.2 + seed / 100, 0.9], method, seed)
    return folder


def test_the_table_of_the_readme_is_what_compare_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\n| old |\n{END}\nafter\n")
    runs = runs_of(tmp_path / "runs")
    with pytest.raises(SystemExit):
        readme_table.main([str(runs), "--unknown"])
    assert "unknown" in capsys.readouterr().err
    found = readme_table.table(compare([runs], 2, 0.8))
    lines = found.splitlines()
    assert lines[0].startswith("| method | accuracy %")
    assert lines[2].startswith("| SFL | 90.2 \u00b1 0.4 | 2.00 \u00b1 0.00 | 4.00 \u00b1 0.00 | ")
    assert lines[2].split(" | ")[4:] == ["4 / 4", "1 |"]
    assert lines[3].startswith("| FedAvg | ")
    assert lines[-1] == "Seeds 0, 1; 4 rounds; mean \u00b1 sample standard deviation over the seeds."
    placed = readme_table.placed(readme.read_text(), found)
    assert placed == f"before\n{BEGIN}\n{found}\n{END}\nafter\n"
    with pytest.raises(ValueError, match="lacks"):
        readme_table.placed("no marks", found)


def test_the_readme_has_a_place_for_its_table() -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert readme_table.placed(text, "x") != text
    assert f"{BEGIN}\n| {' | '.join(readme_table.COLUMNS)} |\n" in text
