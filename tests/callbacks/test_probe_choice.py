"""Which rows the probe has: a file's, classes in equal shares, or a draw; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_sfl.callbacks import ProbeAlignment, RoundRecord
from lightning_sfl.callbacks.probe_choice import by_turns, read_indices
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.methods import SFL, FedAvg
from lightning_sfl.records.round_log import read_rounds
from tests import tiny

SIZES = (5, 4, 9)


def fitted(folder: Path, **options: Any) -> tuple[ProbeAlignment, dict[str, float]]:
    """A round of SFL that watches with these options."""
    probe = ProbeAlignment(**options)
    fit = tiny.trainer(1, [probe, RoundRecord()], default_root_dir=folder, precision="64-true")
    fit.fit(tiny.build(SFL, tiny.network(dtype=torch.float64)), tiny.rows(SIZES, dtype=torch.float64))
    return probe, read_rounds(folder / "rounds.jsonl")[0]["scalars"]


@pytest.mark.parametrize("form", ["list", "indices", "probe_indices", "q_indices", "txt"])
def test_rows_of_a_file_in_every_form(tmp_path: Path, form: str) -> None:
    chosen = [7, 3, 16]
    path = tmp_path / ("rows.txt" if form == "txt" else "rows.json")
    text = "\n".join(map(str, chosen)) if form == "txt" else json.dumps(chosen if form == "list" else {form: chosen})
    path.write_text(text + "\n")
    probe, _ = fitted(tmp_path, index_file=str(path), max_rows=2)
    assert probe.rows.rows[0].tolist() == chosen


def test_the_probe_is_the_gradient_on_the_listed_rows(tmp_path: Path) -> None:
    """A step of plain SGD on all rows, averaged, against minus the gradient on rows 0 and 11."""
    (tmp_path / "rows.json").write_text("[0, 11]")
    data, net = tiny.rows(SIZES, dtype=torch.float64), tiny.network(dtype=torch.float64)
    probe = ProbeAlignment(index_file=str(tmp_path / "rows.json"))
    fit = tiny.trainer(1, [probe, RoundRecord()], default_root_dir=tmp_path, precision="64-true")
    fit.fit(tiny.build(FedAvg, net, batch_size=None), data)
    scalars = read_rounds(tmp_path / "rounds.jsonl")[0]["scalars"]

    def gradient(at: Any) -> torch.Tensor:
        whole: nn.Module = tiny.network(dtype=torch.float64)
        loss = cross_entropy(whole(data.population.x[at]), data.population.y[at])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(whole.parameters())[:2])])

    listed, everybody = gradient([0, 11]), gradient(slice(None))
    cosine = float(listed @ everybody / listed.norm() / everybody.norm())
    assert scalars["probe/B_client"] == pytest.approx(1 - cosine, abs=1e-9)


def test_what_is_dropped_of_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("4\n-1\n\n4\n18\n99\n2\n")
    with pytest.warns(UserWarning, match=r"1 negative, 2 past the last row \(17\), 1 listed twice dropped, 2 rows"):
        probe, _ = fitted(tmp_path, index_file=str(tmp_path / "rows.txt"))
    assert probe.rows.rows[0].tolist() == [4, 2]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.csv", "1", r"an existing \.json or \.txt file"),
        ("rows.json", "[1, 2.5]", r"2\.5 is no row number"),
        ("rows.json", "[true]", "True is no row number"),
        ("rows.json", '"1"', "neither a list"),
        ("rows.json", '{"rows": [1]}', "an object needs one of indices, probe_indices, q_indices"),
        ("rows.json", '{"indices": [1], "q_indices": [2]}', "an object needs one of"),
        ("rows.json", "[1", "is no list of row numbers"),
        ("rows.txt", "1 2\n", "is no list of row numbers"),
        ("rows.txt", "1\nx\n", "is no list of row numbers"),
        ("rows.txt", "-1\n18\n", "a list with rows of 0 to 17"),
        ("rows.txt", "", "a list with rows of 0 to 17"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        fitted(tmp_path, index_file=str(tmp_path / name))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("probe_alignment.index_file=")
    with pytest.raises(ConfigError, match="an existing"):
        read_indices("key", str(tmp_path / "nowhere.json"))


def test_classes_take_turns_until_one_has_no_more() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        labels = draw.integers(0, 5, size=40)
        held, rows = np.bincount(labels, minlength=5), int(draw.integers(1, 41))
        chosen = by_turns(draw.permutation(40), labels)[:rows]
        counts = np.bincount(labels[chosen], minlength=5)
        assert len(set(chosen.tolist())) == rows
        most = counts.max()
        assert all(count >= most - 1 or count == have for count, have in zip(counts, held, strict=True))


def test_a_balanced_probe(tmp_path: Path) -> None:
    probe, _ = fitted(tmp_path, balanced=True, max_rows=8)
    counts = torch.bincount(probe.rows.y[torch.from_numpy(probe.rows.rows[0])], minlength=4)
    held = torch.bincount(probe.rows.y, minlength=4)
    assert counts.tolist() == torch.minimum(held, torch.tensor(2)).tolist()
    plain, _ = fitted(tmp_path / "plain", max_rows=8)
    assert set(plain.rows.rows[0].tolist()) != set(probe.rows.rows[0].tolist())


def test_what_leaves_nothing_to_balance_is_refused() -> None:
    for options in ({"max_rows": None}, {"index_file": "rows.json"}):
        with pytest.raises(ConfigError, match=r"probe_alignment\.balanced=True is not allowed: false where"):
            ProbeAlignment(balanced=True, **options)


def test_labels_that_are_no_classes_cannot_be_balanced(tmp_path: Path) -> None:
    data = tiny.rows(SIZES)
    text = tiny.Rows(data.population.x, data.population.y[:, None].repeat(1, 2), data.population.rows)
    with pytest.raises(ConfigError, match="false where a row's label is no class"):
        ProbeAlignment(balanced=True).check(text)
