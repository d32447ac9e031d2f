"""The page of the FedAvg tables: results on file, figures beside the paper's, claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.fedavg_tables import paper, report
from benchmarks.fedavg_tables.cells import Cell, Run
from benchmarks.fedavg_tables.claims import NEVER, claims, compared, judged
from benchmarks.fedavg_tables.initialisation import THETAS, between
from benchmarks.fedavg_tables.store import Store
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.records.curves import Spread
from tests.benchmarks.made_tables import CELLS, IID_CELL, put


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
    assert "\n6 trainings of 3 of 78 cells are on file; 1 of these have several seeds.\n" in text
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


def test_the_page_in_docs_is_what_the_committed_results_say() -> None:
    root = Path(report.__file__).parents[2]
    store = Store(root / "benchmarks" / "fedavg_tables" / "results")
    measured = (root / "docs" / "fedavg_tables.md").read_text().partition(report.BEGIN)[2].partition(report.END)[0]
    assert measured.strip() == report.measured_part(store, [0, 1, 2]).strip()
    assert list((store.folder / "runs").glob("*.json"))


def test_claims_hold_fall_or_stay_open() -> None:
    def by_paper(cell: Cell, target: float) -> Spread:
        found = [e for table in paper.TABLES.values() for e in table.entries if (e.cell, e.target) == (cell, target)]
        return NEVER if found[0].published is None else Spread(float(found[0].published), None, 1, 1)

    verdicts = [claim.verdict for claim in claims(by_paper)]
    assert verdicts == [
        "does not hold",  # the paper's own: CNN non-IID takes 200 rounds at C=0.2 and 261 at C=0.5
        "does not hold (2 of 16 comparisons open)",  # 2NN IID takes 1455 rounds at C=0, 1474 at 0.1; 0.5 and 1 never
        "holds",
        "holds",
        "does not hold",  # nor is this one monotone: 65 rounds at u=12, 234 at u=20
        "does not hold",
        "does not hold",  # IID B=50 takes 29 rounds at E=5 and 32 at E=20
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


def test_more_work_is_compared_with_the_nearest_row_that_is_measured() -> None:
    found = {"cnn-iid-fedsgd": 700.0, "cnn-iid-C0.1-E1-B10": 35.0, "cnn-iid-C0.1-E5-B10": 40.0}
    (claim,) = (
        claim
        for claim in claims(lambda cell, target: Spread(found[cell.name], None, 1, 1) if cell.name in found else None)
        if claim.text == "More local work takes fewer rounds, each measured step of it (CNN, IID)"
    )
    assert claim.verdict == "does not hold (6 of 8 comparisons open)"
    assert claim.lines == (
        "FedAvg E=1 B=10, IID against FedSGD E=1 B=inf: 35 against 700",
        "FedAvg E=5 B=10, IID against FedAvg E=1 B=10: 40 against 35, **not so**",
    )


def test_averaged_networks_on_the_page(tmp_path: Path) -> None:
    losses = {"alike": [1 - 0.5 * (t == 0.5) for t in THETAS], "apart": [1 + (t == 0.5) for t in THETAS]}
    (tmp_path / "init.json").write_text(json.dumps({"0": losses, "1": {**losses, "apart": losses["alike"]}}))
    text = report.init_part(Store(tmp_path))
    assert "| 0.5 | 0.500 \u00b1 0.000 | 1.250 \u00b1 1.061 |" in text
    assert "below both parents' in 2 of 2 seeds" in text
    assert "above both parents' in 1 of 2" in text
