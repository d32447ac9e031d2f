"""The commands of docs/fedavg_family.md work, and its table names every rule there is."""

from __future__ import annotations

import pytest
import torch

from lightning_sfl.class_names import kind_of
from tests.cli.terminal import Terminal
from tests.readme.pages import commands_of, page_of, trains

PAGE = page_of("fedavg_family.md")
COMMANDS = commands_of(PAGE)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_work(command: str, terminal: Terminal) -> None:
    trains(command, terminal)


@pytest.mark.parametrize("key", ["aggregator", "merge_optimizer", "selection", "effort", "staleness"])
def test_its_tables_name_all_classes(key: str) -> None:
    names = [name for name in kind_of(key).names() if not hasattr(torch.optim, name)]
    assert len(names) > 2
    assert [name for name in names if f"| `{name}` |" not in PAGE] == []
