"""`check` on the command line: its lines, its exit codes, and that it leaves nothing behind."""

from __future__ import annotations

import re

import pytest

from lightning_sfl.checks.lines import CHECKS
from tests.cli.terminal import SFL, SMALL, Terminal, listing

MINE = """
from dataclasses import replace

import numpy as np
from torch import nn
from lightning_sfl.data import Partition
from lightning_sfl.core.cut import Reply, Upload
from lightning_sfl.methods import SFL


class Deaf(SFL):
    name = "deaf"

    def serve(self, uploads: list[Upload]) -> list[Reply]:
        return [replace(each, sent=tuple(part * 0 for part in each.raw)) for each in super().serve(uploads)]


class Wrong(SFL):
    def serve(self, uploads):
        return super().serve(uploads) + 1


class Restless(Partition):
    def split(self, labels, num_clients, rng, owner):
        return np.array_split(np.random.default_rng().permutation(len(labels)), num_clients)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.lower, self.upper, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.upper.weight = self.lower.weight

    def forward(self, x):
        return self.head(self.upper(self.lower(x.flatten(1)).relu()))


"""
LINE = re.compile(r"(ok|failed|not applicable) +(\w+) +(exact|[\d.e+-]+|inf)? +\S")


def lines(out: str) -> dict[str, str]:
    """Name -> state."""
    found = [LINE.match(line) for line in out.splitlines()]
    return {match[2]: match[1] for match in found if match}


def test_the_fedavg_family_is_left_out_and_said_to_be(terminal: Terminal) -> None:
    """Rules for more clients than there are here, and what equivalences do not hold with."""
    names = [check.name for check in CHECKS if check.name not in ("repeat", "v1_fedavg", "one_client", "weights")]
    family = ["--model.merge_optimizer=FedYogi", "--model.aggregator=Krum", "--model.attendance.quorum=2"]
    family += ["--model.selection=Oort", "--model.selection.min_rows=12"]
    code, out, _ = terminal.types(
        "check", SFL, *SMALL, "--model.participants=5", *family, f"--skip=[{','.join(names)}]"
    )
    assert (code, "left out here: aggregator, merge_optimizer, attendance, selection.min_rows\n" in out) == (0, True), (
        out
    )
    assert {name for name, state in lines(out).items() if state == "ok"} >= {"repeat", "v1_fedavg", "one_client"}
    skip = f"--skip=[{','.join(check.name for check in CHECKS)}]"
    assert "left out here" not in terminal.types("check", SFL, *SMALL, skip)[1]


def test_a_line_for_each_and_nothing_left_behind(terminal: Terminal) -> None:
    code, out, err = terminal.types("check", SFL, *SMALL)
    assert (code, err) == (0, "")
    assert list(lines(out)) == [check.name for check in CHECKS]
    assert set(lines(out).values()) == {"ok", "not applicable"}
    assert lines(out)["fingerprints"] == "ok"
    assert out.splitlines()[-1] == "19 ok, 0 failed, 2 not applicable"
    assert out.startswith("method: sfl; cut pool:")
    assert listing(terminal.folder) == set()


def test_a_line_that_fails_is_exit_code_1(terminal: Terminal) -> None:
    terminal.writes("mine_checked.py", MINE)
    names = [check.name for check in CHECKS if check.name not in ("one_step", "denominator", "counts")]
    skip = ["--skip", f"[{','.join(names)}]"]
    code, out, err = terminal.types("check", SFL, *SMALL, "--model=mine_checked.Deaf", *skip)
    assert (code, err) == (1, "")
    found = lines(out)
    assert {name for name, state in found.items() if state == "failed"} == {"one_step", "denominator"}
    assert found["counts"] == "ok"
    assert "left out by --skip" in out
    assert "mend the topmost first" in out


def test_a_partition_with_draws_of_its_own_is_found_out(terminal: Terminal) -> None:
    terminal.writes("mine_dealt.py", MINE)
    names = ",".join(check.name for check in CHECKS if check.name not in ("repeat", "fingerprints"))
    own = ["--data.partition=mine_dealt.Restless", f"--skip=[{names}]"]
    code, out, _ = terminal.types("check", SFL, *SMALL, *own)
    assert code == 1
    assert (lines(out)["repeat"], lines(out)["fingerprints"]) == ("ok", "failed")


def test_a_method_that_raises_is_lines_that_failed(terminal: Terminal) -> None:
    terminal.writes("mine_raises.py", MINE)
    names = ",".join(check.name for check in CHECKS if check.name not in ("cut_eval", "repeat", "v1_fedavg"))
    code, out, err = terminal.types("check", SFL, *SMALL, "--model=mine_raises.Wrong", f"--skip=[{names}]")
    assert (code, err) == (1, "")
    found = lines(out)
    assert (found["cut_eval"], found["repeat"], found["v1_fedavg"]) == ("ok", "failed", "ok")
    assert "TypeError: can only concatenate list" in out


def test_tied_weights_are_found_before_anything_else(terminal: Terminal) -> None:
    terminal.writes("mine_tied.py", MINE)
    own = ["--model.backbone=mine_tied.Tied", "--model.cut_layer=lower"]
    code, out, _ = terminal.types("check", SFL, *SMALL, *own)
    assert code == 1
    assert lines(out) == {"cut_eval": "failed"}
    assert "tied weights lie on both sides (lower.weight, upper.weight)" in out


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--clients=1", "clients=1 is not allowed: an integer >= 2"),
        ("--rows=3", "rows=3 is not allowed: an integer >= 4"),
        ("--skip=[one_stop]", "skip='one_stop' is not allowed: names of lines: cut_eval"),
        ("--model.cut_layer=pol", "model.cut_layer='pol' is not allowed: one of conv1"),
        ("--model=SplitMethod", "SplitMethod has no serve()"),
        ("--model.local_epochs=0", "model.local_epochs=0"),
        ("--clientz=3", "'clientz'"),
    ],
)
def test_what_cannot_work_is_refused(argument: str, words: str, terminal: Terminal) -> None:
    assert words in terminal.is_refused("check", SFL, *SMALL, argument)


def test_help_says_what_it_does(terminal: Terminal) -> None:
    code, out, _ = terminal.types("check", "--help")
    words = " ".join(out.split())
    assert code == 0
    for said in ("Exit code 0 when all that apply hold", "--skip", "departures()", "rows of each, 4 or more"):
        assert said in words
