"""Every key of every shipped config, spoilt in every way: accepted by rule, or refused in one line that names it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_sfl.cli import SFLCLI
from tests.cli.terminal import Terminal

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
METHOD = CONFIGS / "methods" / "sfl.yaml"
MISSING = object()
SPOILT: dict[str, Any] = {
    "missing": MISSING,
    "null": None,
    "wrong type": ["x", {"y": 1.5}],
    "text": "wrong words",
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "negative": -3,
    "zero": 0,
    "huge": 10**30,
    "empty": "",
    "empty section": {},
    "unknown name": "Nonesuch",
}
SAMPLE = 2  # of each way to spoil a key
NOT_SHIPPED = ("Parquet", "PlayText", "ResNet18")  # the last one is for colour images, over which its configs are laid


def keys_of(content: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key, sections included."""
    for key, value in content.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*path, key))


def cases() -> list[tuple[str, tuple[str, ...], str]]:
    """File, key and the way in which it is spoilt; comparisons, and data that do not ship, have tests of their own."""
    files = sorted(CONFIGS.rglob("*.yaml"))
    found = []
    for file in files:
        content = yaml.safe_load(file.read_text())
        is_run = content.keys() <= {"seed_everything", "trainer", "data", "model"}
        if is_run and not any(word in str(content) for word in NOT_SHIPPED):
            found += [(str(file.relative_to(CONFIGS)), key, way) for key in keys_of(content) for way in SPOILT]
    return found


def spoil(content: dict[str, Any], key: tuple[str, ...], value: Any) -> dict[str, Any]:
    spoilt = copy.deepcopy(content)
    section = spoilt
    for name in key[:-1]:
        section = section[name]
    if value is MISSING:
        del section[key[-1]]
    else:
        section[key[-1]] = copy.deepcopy(value)
    return spoilt


def check(file: str, key: tuple[str, ...], way: str, terminal: Terminal) -> bool:
    """Whether the spoilt config is accepted; a refusal must be one line that speaks of the key."""
    content = yaml.safe_load((CONFIGS / file).read_text())
    terminal.writes("spoilt.yaml", yaml.safe_dump(spoil(content, key, SPOILT[way])))
    code, _, err = terminal.types("fit", "--config", str(METHOD), "--config", "spoilt.yaml")
    case = f"{file} {'.'.join(key)} {way}: {err}"
    if code == 0:
        assert err == "", case
        return True
    assert code == 2, case
    assert err.startswith("error: "), case
    assert err.count("\n") == 1, case
    named = [name for name in key if name not in ("class_path", "init_args")]
    assert any(name in err for name in named) or str(SPOILT[way]) in err, case
    assert {path.name for path in terminal.folder.iterdir()} <= {"spoilt.yaml", "runs"}, case
    return False


@pytest.fixture(autouse=True)
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that comes before the first round, the rehearsal included, and nothing after it."""
    monkeypatch.setattr(SFLCLI, "_run_subcommand", lambda self, command: None)


def test_a_sample(terminal: Terminal) -> None:
    """Some of each way; without a key there is its default, as a rule."""
    draw, every = np.random.default_rng(0), cases()
    assert len(every) >= 500
    of_a_way = [[case for case in every if case[-1] == way] for way in SPOILT]
    picked = [found[i] for found in of_a_way for i in draw.choice(len(found), SAMPLE, replace=False)]
    accepted = sum(check(*case, terminal) for case in picked)
    assert 0 < accepted < len(picked)


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted({file for file, _, _ in cases()}))
def test_all(file: str, terminal: Terminal) -> None:
    every = [case for case in cases() if case[0] == file]
    accepted = sum(check(*case, terminal) for case in every)
    assert 0 < accepted < len(every) / 2
