"""What a user meets first: quick import, one class object for each import path, names at the top."""

from __future__ import annotations

import importlib
import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_sfl

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> str:
    """Output of a fresh interpreter in the root of the checkout."""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_import_is_quick_and_the_version_is_known() -> None:
    code = "import sys, lightning_sfl; print('torch' in sys.modules, lightning_sfl.__version__)"
    assert python(code) == f"False {lightning_sfl.__version__}"


@pytest.mark.parametrize("first", ["callbacks", "lightning_sfl.callbacks"])
def test_both_import_paths_of_callbacks_give_the_same_objects(first: str) -> None:
    code = f"""
import importlib
importlib.import_module({first!r})
import callbacks, lightning_sfl.callbacks as installed, pkgutil
assert callbacks is installed
for found in pkgutil.iter_modules(installed.__path__):
    short = importlib.import_module("callbacks." + found.name)
    assert short is importlib.import_module("lightning_sfl.callbacks." + found.name), found.name
    assert short.__name__ == "lightning_sfl.callbacks." + found.name
print("same")
"""
    assert python(code) == "same"


def test_configs_are_found_as_resources() -> None:
    found = importlib.resources.files("lightning_sfl.configs")
    assert found.joinpath("__init__.py").is_file()


@pytest.mark.parametrize("name", [name for name in lightning_sfl.__all__ if name != "__version__"])
def test_each_name_at_the_top_is_there(name: str) -> None:
    assert name in dir(lightning_sfl)
    assert callable(getattr(lightning_sfl, name))


def test_the_function_trainer_is_not_hidden_by_its_module() -> None:
    importlib.import_module("lightning_sfl.trainer")
    assert lightning_sfl.trainer is sys.modules["lightning_sfl.trainer"].trainer


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SLF'"):
        lightning_sfl.SLF
