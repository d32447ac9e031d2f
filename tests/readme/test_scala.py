"""The commands of docs/scala.md work, and its tables name the options there are and the rows of its sweep."""

from __future__ import annotations

import inspect
import re

import pytest

from lightning_sfl.methods import SCALA
from lightning_sfl.sweep_plan import Sweep, read_sweep
from tests.cli.terminal import Terminal
from tests.readme.pages import ROOT, commands_of, page_of, trains

PAGE = page_of("scala.md")
COMMANDS = commands_of(PAGE)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_work(command: str, terminal: Terminal) -> None:
    trains(command, terminal)
    assert (terminal.folder / "runs" / "scala").is_dir()


def test_its_options_are_those_of_the_method() -> None:
    named = {re.split("[:`]", line)[1] for line in PAGE.splitlines() if line.startswith("| `")}
    assert named == {*inspect.signature(SCALA).parameters} - {"backbone", "cut_layer", "kwargs"}


def test_its_sweep_has_a_row_for_each_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (path,) = re.findall(r"sweep --config (\S+)", PAGE)
    points = Sweep(**read_sweep(path)).points()
    arms = {point.name.rpartition("-seed")[0] for point in points}
    rows = [line for line in PAGE.splitlines() if "\u00b1" in line and line.startswith("| ")]
    assert len(rows) == len(arms) == len(points) / 3
    assert {point.rounds for point in points} == {30}
