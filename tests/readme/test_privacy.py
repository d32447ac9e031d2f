"""The commands of docs/privacy.md work, and its table names every option there is."""

from __future__ import annotations

import importlib.util
import shlex

import pytest

from lightning_sfl.class_names import kind_of
from tests.cli.terminal import Terminal
from tests.readme.pages import commands_of, page_of, trains

PAGE = page_of("privacy.md")
COMMANDS = commands_of(PAGE)
QUICK = ["--data.num_clients=10", "--attack.steps=3", "--samples=20"]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_work(command: str, terminal: Terminal) -> None:
    if "CentralDP" in command and importlib.util.find_spec("opacus") is None:
        pytest.skip("the account needs Opacus")
    if command.startswith("leaks"):
        code, out, err = terminal.types(*shlex.split(command), *QUICK)
        assert (code, err) == (0, "")
        assert "distance" in out
        assert (terminal.folder / "leaks" / "leaks.json").exists() == ("--output" in command)
    else:
        trains(command, terminal)


def test_its_table_names_all_options() -> None:
    names = kind_of("privacy").names()
    assert len(names) == 4
    assert [name for name in names if f"| `privacy: {name}` |" not in PAGE] == []
