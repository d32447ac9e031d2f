"""Diagnostics that cannot be measured are refused before a folder is made, and what is asked for is in the record."""

from __future__ import annotations

import json

import pytest

from tests.cli.terminal import SFL, SMALL, Terminal

PROBE = "--probe_alignment.every=1"
REFUSED = [
    (["--initial_distance.buffers=true"], ["initial_distance.buffers=True is not allowed", "no running statistics"]),
    ([PROBE, "--probe_alignment.index_file=nowhere.txt"], ["probe_alignment.index_file='nowhere.txt'", "existing"]),
    ([PROBE, "--probe_alignment.index_file=far.txt"], ["probe_alignment.index_file='far.txt'", "rows of 0 to"]),
    (
        [PROBE, "--probe_alignment.balanced=true", "--probe_alignment.max_rows=null"],
        ["probe_alignment.balanced=True", "leaves nothing to draw"],
    ),
    (["--drift.anchor=7"], ["drift.anchor"]),
    (["--oracle_distance.every=1", "--oracle_distance.cut=deep"], ["oracle_distance.cut"]),
    (["--cosine_alignment.layers=fc1"], ["cosine_alignment.layers"]),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=lambda case: " ".join(case)[:50])
def test_is_refused(arguments: list[str], words: list[str], terminal: Terminal) -> None:
    terminal.writes("far.txt", "1000000\n")
    line = terminal.is_refused("fit", SFL, *arguments)
    assert [word for word in words if word not in line] == [], line
    assert not (terminal.folder / "runs").exists()


def test_all_of_it_at_once(terminal: Terminal) -> None:
    terminal.writes("rows.json", '{"q_indices": [3, 1, 4]}')
    asked = ["--probe_alignment.index_file=rows.json", "--drift.anchor=true", "--drift.every=1", PROBE]
    asked += ["--oracle_distance.every=1", "--oracle_distance.cut=true", "--oracle_distance.capture=live"]
    asked += ["--cosine_alignment.layers=true", "--gradient_divergence.layers=true"]
    code, _, err = terminal.types("fit", SFL, *SMALL, *asked)
    assert (code, err) == (0, "")
    (log,) = terminal.folder.rglob("rounds.jsonl")
    record = json.loads(log.read_text().splitlines()[0])
    tags = set(record["scalars"])
    assert {"oracle/cut_G", "drift/end_client_anchor", "drift/traj_total", "probe/B_full", "probe/reversal"} <= tags
    assert {"layer/head/gdiv_rms", "layer/conv1/cos_pair"} <= tags
    assert record["matrices"]["align/cos_matrix"]["labels"]
