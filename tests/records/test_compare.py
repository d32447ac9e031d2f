"""Rows, labels, figures and the sentences on what differs, from runs made by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lightning_sfl.core.errors import ConfigError, DataError
from lightning_sfl.records.compare import Comparison, compare, write
from tests.records import made

FLAT = [0.2, 0.4, 0.6, 0.8]


def said(found: Comparison, start: str) -> str:
    """The one sentence that begins so."""
    sentences = [sentence for sentence in found.differences if sentence.startswith(start)]
    assert len(sentences) == 1, found.differences
    return sentences[0]


def test_seeds_are_one_row_with_the_figures_in_closed_form(tmp_path: Path) -> None:
    made.run(tmp_path / "a", [0.0, 0.5, 1.0, 1.0], seed=0)
    made.run(tmp_path / "b", [0.0, 0.0, 0.5, 1.0], seed=1)
    found = compare([tmp_path], last=2, target=0.75)
    (row,) = found.rows
    assert (row.label, row.group.seeds) == ("SFL", (0, 1))
    assert row.figures["accuracy"].mean == pytest.approx(0.875)
    assert row.figures["accuracy"].sd == pytest.approx(0.25 / 2**0.5)
    assert row.figures["best"].mean == 1.0
    assert row.figures["rounds_to_target"].mean == pytest.approx(3.0)
    assert row.figures["mb_to_target"].mean == pytest.approx(6.0)
    assert row.figures["server_steps_to_target"].mean == pytest.approx(12.0)
    assert (row.figures["client_steps"].mean, row.figures["server_steps"].mean) == (16.0, 16.0)
    assert (row.figures["mb_up"].mean, row.figures["mb_down"].mean) == (4.0, 4.0)
    assert row.traffic["smashed", "up"].mean == pytest.approx(3.6)
    assert row.traffic["labels", "up"].mean == pytest.approx(0.4)
    assert row.figures["server_per_client"].mean == 1.0
    assert row.figures["server_per_round"].mean == 4.0
    assert found.differences == []


def test_a_target_that_one_seed_misses_has_no_mean(tmp_path: Path) -> None:
    made.run(tmp_path / "a", [0.0, 0.9, 0.9, 0.9], seed=0)
    made.run(tmp_path / "b", FLAT, seed=1)
    found = compare([tmp_path], last=1, target=0.85)
    cell = dict(zip(found.tables[0].header, found.tables[0].rows[0], strict=True))
    assert cell["rounds to 85%"] == "(1 of 2 seeds)"
    never = compare([tmp_path], last=1, target=0.95)
    assert "" in never.tables[0].rows[0]
    assert not any("nan" in cell.lower() for table in never.tables for line in table.rows for cell in line)


def test_rows_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT)
    made.run(tmp_path / "b", FLAT, settings={"data.partition.init_args.alpha": 1.0})
    made.run(tmp_path / "c", FLAT, settings={"model.init_args.client_optimizer.init_args.lr": 0.5})
    made.run(tmp_path / "d", FLAT, method="FedAvg")
    made.run(tmp_path / "e", FLAT, method="FedAvg", settings={"trainer.default_root_dir": "elsewhere"}, seed=1)
    found = compare([tmp_path])
    assert said(found, "Setting alpha").startswith(
        "Setting alpha differs: 0.3 for SFL client_optimizer.lr=0.1 alpha=0.3"
    )
    assert [row.label for row in found.rows] == [
        "SFL client_optimizer.lr=0.1 alpha=0.3",
        "SFL client_optimizer.lr=0.1 alpha=1.0",
        "SFL client_optimizer.lr=0.5 alpha=0.3",
        "FedAvg",
    ]


def test_what_every_label_says_is_not_said_again(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT)
    made.run(tmp_path / "b", FLAT[::-1], settings={"data.partition.init_args.alpha": 1.0})
    found = compare([tmp_path], last=1)
    assert [row.label for row in found.rows] == ["SFL alpha=0.3", "SFL alpha=1.0"]
    assert found.differences == []


def test_what_only_watches_is_no_difference(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT)
    made.run(tmp_path / "b", FLAT, seed=1, settings={"traffic.every": 10})
    assert len(compare([tmp_path]).rows) == 1


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("partition", "ffff", "Partition, seed 0, differs: aaaa0000 for SFL; ffff for USFL."),
        ("schedule", "ffff", "Client schedule, seed 0, differs: bbbb0000 for SFL; ffff for USFL."),
        ("cut_layer", "conv1", "Cut layer differs: pool for SFL; conv1 for USFL."),
        ("threads", 2, "CPU threads differ: 1 for SFL; 2 for USFL."),
    ],
)
def test_a_sentence_for_each_fact_that_differs(tmp_path: Path, key: str, value: object, sentence: str) -> None:
    made.run(tmp_path / "a", FLAT)
    made.run(tmp_path / "b", FLAT[::-1], method="USFL", facts={key: value})
    assert sentence in compare([tmp_path], last=1).differences


def test_seeds_rounds_and_settings_that_differ(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT)
    made.run(tmp_path / "b", FLAT, seed=1)
    settings = {"model.init_args.batch_size": 50, "trainer.max_epochs": 3}
    made.run(tmp_path / "c", [0.1, 0.2, 0.3], method="USFL", settings=settings, facts={"rounds": 3})
    found = compare([tmp_path], last=1)
    assert said(found, "Seeds") == "Seeds differ: 0, 1 for SFL; 0 for USFL."
    assert said(found, "Number") == "Number of rounds differs: 4 for SFL; 3 for USFL."
    assert said(found, "Setting batch_size") == "Setting batch_size differs: 10 for SFL; 50 for USFL."
    assert found.alike == "The same for all rows: partition (per seed), client schedule (per seed), cut pool."


def test_the_schedule_of_runs_of_unlike_length_is_read_from_the_records(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT)
    other = made.run(tmp_path / "b", FLAT[:3], method="USFL", facts={"rounds": 3, "schedule": "other"})
    assert not [s for s in compare([tmp_path], last=1).differences if s.startswith("Client")]
    log = other / "rounds.jsonl"
    log.write_text(log.read_text().replace('"clients": {"1":', '"clients": {"7":'))
    assert said(compare([tmp_path], last=1), "Clients met") == "Clients met, seed 0, differ between SFL / USFL."


def test_a_schedule_that_nobody_knew_beforehand_has_no_fingerprint(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT)
    made.run(tmp_path / "b", FLAT[::-1], method="USFL", facts={"schedule": None})
    found = compare([tmp_path], last=1)
    assert not [sentence for sentence in found.differences if sentence.startswith("Client")]
    assert "partition" in found.alike
    assert "schedule" not in found.alike
    assert "None" not in str(found.tables[3].rows)


def test_who_took_part_counts_besides_who_was_to(tmp_path: Path) -> None:
    """As in asynchronous methods, whose clients come when they are done."""
    made.run(tmp_path / "a", FLAT)
    made.run(tmp_path / "b", FLAT, method="SFLV2")
    log = made.run(tmp_path / "c", FLAT[::-1], method="GAS") / "rounds.jsonl"
    log.write_text(log.read_text().replace('"clients": {"1":', '"clients": {"1.1": {}, "7":'))
    found = compare([tmp_path], last=1)
    assert said(found, "Clients met") == "Clients met, seed 0, differ between SFL and SFLV2 / GAS."
    assert "client schedule" not in found.alike


def test_a_sentence_for_each_axis_of_the_dynamics(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT)
    made.run(tmp_path / "b", FLAT[::-1], method="SFLV2", cut__scale_rel_mean=1.001)
    made.run(tmp_path / "c", FLAT[:2] * 2, method="USFL", server_steps=1, cut__scale_rel_mean=0.1, init__dist=0.5)
    found = compare([tmp_path], last=1)
    assert ": 1 for SFL and SFLV2; 0.1 for USFL;" in said(found, "Gradient scale").replace("1.001", "1")
    assert ": 0.5 for USFL; 0 for SFL and SFLV2;" in said(found, "Distance between")
    assert ": 1 for SFL and SFLV2; 0.25 for USFL;" in said(found, "Server steps per client step")
    assert ": 4 for SFL and SFLV2; 1 for USFL;" in said(found, "Server steps per round")
    assert not [s for s in found.differences if s.startswith("Client steps per round")]


def test_what_was_not_measured_is_said_and_left_blank(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT)
    bare = made.run(tmp_path / "b", FLAT[::-1], method="FedAvg", server_steps=0)
    log = bare / "rounds.jsonl"
    log.write_text(log.read_text().replace("cut/scale_rel_mean", "other/tag"))
    found = compare([tmp_path], last=1)
    assert "not measured for FedAvg, 1 for the other rows" in said(found, "Gradient scale")
    cells = {line[0]: dict(zip(found.tables[1].header, line, strict=True)) for line in found.tables[1].rows}
    assert cells["FedAvg"]["gradient scale at the cut"] == ""
    assert cells["SFL"]["gradient scale at the cut"] == "1"
    assert cells["SFL"]["label imbalance of a server step"] == "0.25"
    assert found.rows[1].figures["server_steps_to_target"].mean is None


def test_the_probe_by_mean_upper_end_and_share_of_rounds_uphill(tmp_path: Path) -> None:
    bs = [0.2, 1.3, 0.9, 1.0]
    for seed, shift in enumerate((0.0, 0.1)):
        log = made.run(tmp_path / f"a{seed}", FLAT, seed=seed, probe__B_client=0, probe__B_server=0.5) / "rounds.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for line, b in zip(lines, bs, strict=True):
            line["scalars"]["probe/B_client"] = b + shift
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made.run(tmp_path / "b", FLAT[::-1], method="FedAvg")
    found = compare([tmp_path], last=1)
    assert [table.title.split(",")[0] for table in found.tables] == ["Results", "Dynamics", "Probe", "Traffic", "Runs"]
    header, (first, other) = found.tables[2].header, found.tables[2].rows
    cells = dict(zip(header, first, strict=True))
    assert cells["B, client half"] == "0.9"
    assert cells["client: p95"] == "1.3"  # 1.0 + 0.85 * 0.3 = 1.255, and 0.1 more
    assert cells["client: largest"] == "1.35"
    assert cells["client: % of rounds uphill"] == "37.5"  # one of four; then 1.4 and 1.1, two of four
    assert cells["server: p95"] == "0.5"
    assert cells["server: % of rounds uphill"] == "0.0"
    assert set(other[1:]) == {""}
    write(found, tmp_path / "out")
    assert {"results.tex", "dynamics.tex", "probe.tex", "traffic.tex"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert "client: % of rounds uphill" in (tmp_path / "out" / "index.html").read_text()
    with (tmp_path / "out" / "figures.csv").open(newline="") as file:
        (line, bare) = csv.DictReader(file)
    assert float(line["B_client_p95_mean"]) == pytest.approx(1.305)
    assert bare["B_client_p95_mean"] == ""


def test_without_probes_there_is_no_table_of_them(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT)
    assert [table.title for table in compare([tmp_path], last=1).tables] == [
        "Results",
        "Dynamics",
        "Traffic, MB",
        "Runs",
    ]


def test_traffic_of_some_rounds_only_is_no_total(tmp_path: Path) -> None:
    folder = made.run(tmp_path / "a", FLAT)
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    first["scalars"] = {k: v for k, v in first["scalars"].items() if not k.startswith("traffic")}
    (folder / "rounds.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    (row,) = compare([folder]).rows
    assert row.figures["mb_up"].mean is None
    assert row.traffic["smashed", "up"].mean is None


def test_twins_are_named(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT, method="SFLV1")
    made.run(tmp_path / "b", FLAT, method="FedAvg")
    said(compare([tmp_path]), "SFLV1 and FedAvg have exactly the same accuracy")


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    made.run(tmp_path / "version_0", FLAT)
    made.run(tmp_path / "version_1", FLAT)
    found = compare([tmp_path], last=1)
    assert len(found.rows[0].group.runs) == 1
    assert "seed 0 has 2 runs that are identical; one counts" in said(found, "SFL: ")
    made.run(tmp_path / "version_2", FLAT[:2])
    found = compare([tmp_path], last=1)
    assert found.rows[0].group.runs[0].folder == tmp_path / "version_1"
    assert "3 runs that differ" in said(found, "SFL: ")


def test_a_run_under_way_is_named(tmp_path: Path) -> None:
    made.run(tmp_path / "a", FLAT[:3])
    folder = made.run(tmp_path / "b", FLAT, seed=1)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text((folder / "config.yaml").read_text())
    found = compare([tmp_path], last=4)
    assert said(found, "SFL, seed 0") == "SFL, seed 0: 3 of 4 rounds so far."
    said(found, f"{tmp_path / 'c'} has no finished round")
    said(found, "Fewer than 4 rounds")
    assert found.rows[0].figures["accuracy"].mean is None


def test_old_runs_and_runs_from_python(tmp_path: Path) -> None:
    folder = made.run(tmp_path / "a", FLAT)
    (folder / "run.json").unlink()
    said(compare([tmp_path], last=1), "SFL: no run.json in")
    (folder / "config.yaml").unlink()
    found = compare([tmp_path], last=1)
    assert found.rows[0].label == "sfl"
    said(found, "sfl: no config.yaml")


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runs=.*nowhere"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match=r"rounds\.jsonl"):
        compare([tmp_path])
    folder = made.run(tmp_path / "a", FLAT)
    for options in ({"last": 0}, {"target": 0.0}, {"target": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            compare([tmp_path], **options)
    (folder / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json"):
        compare([tmp_path])


def test_the_csv_holds_every_figure_at_full_precision(tmp_path: Path) -> None:
    made.run(tmp_path / "a", [0.1, 0.2, 0.3, 1 / 3])
    made.run(tmp_path / "b", FLAT, method="USFL", seed=4)
    write(compare([tmp_path], last=1), tmp_path / "out")
    with (tmp_path / "out" / "figures.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert float(lines[0]["accuracy_mean"]) == 1 / 3
    assert (lines[0]["accuracy_sd"], lines[0]["rounds_to_target_mean"]) == ("", "")
    assert float(lines[1]["mb_smashed_up_mean"]) == pytest.approx(3.6)
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        assert [(line["method"], line["seed"]) for line in csv.DictReader(file)] == [("SFL", "0"), ("USFL", "4")]
