"""The study's arithmetic against known values, its reading of runs made by hand, and a tiny study from end to end."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.dynamics.gaps import holm, paired, quantile, within
from benchmarks.dynamics.results import ARMS, PUBLISHED, read
from benchmarks.dynamics.study import tell
from lightning_sfl.core.errors import ConfigError
from tests.records.made import run

ROOT = Path(__file__).resolve().parents[2]
DYNAMICS: dict[str, dict[str, object]] = {
    PUBLISHED: {},
    "scale": {"client_scale": "own"},
    "start": {"start": "merged"},
    "server steps": {"server_steps": 5},
    "all three": {"client_scale": "own", "start": "merged", "server_steps": 5},
}


# Student's t, two-sided 95 %: any table has them.
@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_quantiles_are_those_of_the_tables(freedom: int, t: float) -> None:
    assert quantile(0.95, freedom) == pytest.approx(t, abs=1e-4)
    assert within(t, freedom) == pytest.approx(0.95, abs=1e-5)


@pytest.mark.parametrize("freedom", [1, 2, 5, 8])
def test_probabilities_are_those_of_drawn_samples(freedom: int) -> None:
    drawn = np.abs(np.random.default_rng(0).standard_t(freedom, 200_000))
    for t in (0.3, 1.0, 2.5):
        assert within(t, freedom) == pytest.approx(float((drawn < t).mean()), abs=0.005)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        pairs = [draws.normal(2.0, 3.0, 4), draws.normal(0.5, 1.0, 4)]
        gap = paired(*(dict(enumerate(values.tolist())) for values in pairs))
        assert gap.low is not None
        hits += gap.low < 1.5 < gap.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_pairs_are_by_seed_and_one_alone_has_no_interval() -> None:
    gap = paired({0: 5.0, 1: 7.0, 2: 9.0, 9: 100.0}, {2: 3.0, 1: 4.0, 0: 5.0})
    assert (gap.mean, gap.pairs) == (3.0, 3)
    assert gap.half == pytest.approx(4.3027 * np.std([0, 3, 6], ddof=1) / np.sqrt(3), rel=1e-4)
    assert paired({0: 2.0}, {0: 1.0}).half is None
    assert (same := paired({0: 2.0, 1: 3.0}, {0: 2.0, 1: 3.0})).p == 1
    assert same.half == 0
    coarse = paired({0: 2.3, 1: 3.3, 2: 0.3}, {0: 2.0, 1: 3.0, 2: 0.0})
    assert (coarse.half, coarse.p) == (None, None)
    with pytest.raises(ValueError, match="no seed in common"):
        paired({0: 1.0}, {1: 1.0})


def test_holm_by_hand() -> None:
    """0.01 < 0.05/4, 0.015 < 0.05/3, 0.03 > 0.05/2: the third stops it, whatever comes after."""
    assert holm({"a": 0.03, "b": 0.01, "c": 0.015, "d": 0.04}) == {"b", "c"}
    assert holm({}) == set()


def cell(folder: Path, method: str, arm: str, seed: int, accuracy: float, rounds: int = 6) -> None:
    """A run that was to have six rounds."""
    found = {"client_scale": "method", "server_steps": 0, "start": "method", **DYNAMICS[arm]}
    target = run(folder / f"{method}-{arm}-{seed}", [accuracy] * rounds, method, seed, facts={"rounds": 6})
    config = yaml.safe_load((target / "config.yaml").read_text())
    config["model"]["init_args"]["dynamics"] = found
    (target / "config.yaml").write_text(yaml.safe_dump(config))


def study_in(folder: Path) -> None:
    """SFL loses 10 points with the server's steps matched; USFL lies 30 below it, half of that by the scale."""
    for seed, noise in enumerate((0.00, 0.01, 0.02)):
        for arm, accuracy in ((PUBLISHED, 0.9), ("server steps", 0.8), ("all three", 0.8)):
            cell(folder, "SFL", arm, seed, accuracy + noise)
        for arm, accuracy in ((PUBLISHED, 0.6), ("scale", 0.75), ("server steps", 0.6), ("all three", 0.75)):
            cell(folder, "USFL", arm, seed, accuracy + noise * (arm != PUBLISHED))
        cell(folder, "MultiSFL", PUBLISHED, seed, 0.7 + noise)
        cell(folder, "MultiSFL", "start", seed, 0.9 + noise)


def test_gaps_are_to_sfl_in_the_same_arm(tmp_path: Path) -> None:
    study_in(tmp_path)
    study = read([tmp_path], last=5)
    assert (study.methods, tuple(study.arms), study.seeds) == (["SFL", "USFL", "MultiSFL"], ARMS, [0, 1, 2])
    means = {(m, a): round(study.gap(m, a).mean, 6) for m in study.others() for a in study.arms}
    assert means["USFL", PUBLISHED] == 31.0
    assert (means["USFL", "scale"], means["USFL", "server steps"], means["USFL", "all three"]) == (15.0, 20.0, 5.0)
    # not trained in these arms, since nothing can change: as published, against SFL in the arm
    assert (means["MultiSFL", "scale"], means["MultiSFL", "server steps"]) == (20.0, 10.0)
    assert means["MultiSFL", "start"] == pytest.approx(0.0, abs=1e-9)
    closed = study.closed("USFL", "scale")
    assert closed.mean == pytest.approx(16.0)
    assert closed.half == pytest.approx(4.3027 * 1.0 / np.sqrt(3), rel=1e-4)
    assert study.closed("MultiSFL", "scale").p == 1


def test_only_whole_seeds_and_whole_runs_count(tmp_path: Path) -> None:
    study_in(tmp_path)
    cell(tmp_path, "SFL", PUBLISHED, 3, 0.9)
    cell(tmp_path, "USFL", "scale", 4, 0.9, rounds=5)
    assert read([tmp_path], last=5).seeds == [0, 1, 2]


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study_in(tmp_path)
    tell(tmp_path, last=5)
    said = capsys.readouterr().out
    assert "Gap to SFL" in said
    text = (tmp_path / "results.md").read_text()
    assert "| USFL |" in text
    lines = {
        (row["method"], row["arm"]): row for row in csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    }
    assert len(lines) == 3 * 5
    assert float(lines["USFL", "scale"]["gap"]) == pytest.approx(15.0)
    assert float(lines["SFL", "scale"]["gap"]) == 0
    for name in ("gaps", "curves"):
        assert (tmp_path / f"{name}.svg").read_text().count("<svg") == 1


def test_nothing_to_tell_is_refused(tmp_path: Path) -> None:
    cell(tmp_path, "USFL", PUBLISHED, 0, 0.5)
    with pytest.raises(ConfigError, match="no seed of which every run has finished"):
        read([tmp_path], last=5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["cifar"], "invalid choice: 'cifar'"),
        (["digits", "--data", "."], "data='.' is not allowed: nothing for digits"),
        (["mnist", "--data", "nowhere"], "data='nowhere' is not allowed: a folder of parquet files"),
        (["digits", "--only_tell", "--out", "nowhere"], "out='nowhere' is not allowed: a folder with runs of a study"),
        (["digits", "--seeds", "x"], "seeds='x' is not allowed"),
        (["digits", "--jobs", "0"], "jobs=0 is not allowed"),
    ],
    ids=str,
)
def test_is_refused_in_one_line(arguments: list[str], named: str, tmp_path: Path) -> None:
    done = study_command(arguments, tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert list(tmp_path.iterdir()) == []


def study_command(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "benchmarks/dynamics/study.py"), *arguments]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path: Path) -> None:
    """One seed of two rounds in every arm; then again, which trains nothing."""
    arguments = ["digits", "--seeds", "0", "--rounds", "2", "--last", "1", "--out", "study"]
    done = study_command(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote results.md" in done.stdout
    before = (tmp_path / "study/results.csv").read_bytes()
    again = study_command(arguments, tmp_path)
    assert "28 runs, 28 finished already" in again.stdout
    assert (tmp_path / "study/results.csv").read_bytes() == before
