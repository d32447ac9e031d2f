"""The classes that CONTRIBUTING shows are run word for word, with their configs, with and without a cut."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.terminal import SMALL, Terminal
from tests.readme.pages import ROOT, commands_of

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = {name: block for block, name in re.findall(r"```(?:python|yaml)\n((?:# (\w+\.\w+)\n).*?)```", PAGE, re.DOTALL)}
METHODS = ("sfl", "fedavg")
STILL = ["--model.client_optimizer.lr=0"]  # what is merged is what was there before
ONCE = [*SMALL, "--trainer.max_epochs=1", "--data.num_clients=4", "--model.participants=3"]


@pytest.fixture
def beside(terminal: Terminal) -> Iterator[Terminal]:
    """A folder with the files of the page."""
    for name, text in FILES.items():
        terminal.writes(name, text)
    yield terminal
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def trained(terminal: Terminal, method: str, *options: str) -> Path:
    """The folder of a run with the config of a method."""
    code, _, err = terminal.types("fit", f"--config=configs/methods/{method}.yaml", *options)
    assert (code, err) == (0, "")
    return max(terminal.folder.glob(f"runs/{method}/version_*"), key=lambda path: int(path.name.split("_")[1]))


def client_half(run: Path) -> dict[str, torch.Tensor]:
    (path,) = run.glob("checkpoints/round-*.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: tensor.double() for name, tensor in state.items() if name.startswith("client_half")}


def test_there_are_an_aggregator_and_a_selector_each_with_a_config() -> None:
    assert [*FILES] == ["cautious.py", "cautious.yaml", "in_turn.py", "in_turn.yaml"]
    assert all(len(text.splitlines()) <= 16 for text in FILES.values())
    named = [re.findall(r"--config (\S+)", command) for command in commands_of(PAGE)]
    assert [configs[-1] for configs in named if len(configs) == 2] == ["cautious.yaml", "in_turn.yaml"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("command", [command for command in commands_of(PAGE) if command.count("--config") == 2])
def test_its_commands_train_with_and_without_a_cut(command: str, method: str, beside: Terminal) -> None:
    first, _, config = command.partition("configs/methods/")
    words = f"{first}configs/methods/{method}.yaml {config.partition(' ')[2]}".split()
    code, _, err = beside.types(*words, *SMALL)
    assert (code, err) == (0, "")
    (record,) = beside.folder.glob(f"runs/{method}/version_0/rounds.jsonl")
    assert len(record.read_text().splitlines()) == 2


@pytest.mark.parametrize("method", METHODS)
def test_the_aggregator_goes_two_thirds_of_the_way(method: str, beside: Terminal) -> None:
    """With `stay: 0.5` the old state counts one half and all clients together one."""
    start = client_half(trained(beside, method, *ONCE, *STILL))
    mean = client_half(trained(beside, method, *ONCE))
    cautious = client_half(trained(beside, method, "--config=cautious.yaml", *ONCE))
    assert any(not torch.equal(start[name], mean[name]) for name in start)
    for name in start:
        assert torch.allclose(cautious[name], start[name] + (mean[name] - start[name]) / 1.5, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("method", METHODS)
def test_the_selector_lets_clients_take_turns(method: str, beside: Terminal) -> None:
    run = trained(beside, method, "--config=in_turn.yaml", *SMALL, "--trainer.max_epochs=4")
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [{*record["clients"]} for record in records] == [{"1", "2"}, {"0", "1"}, {"2", "0"}, {"1", "2"}]
