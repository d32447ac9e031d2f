"""The doctor finds what is wrong with an installation, says what to do about it, and tells with its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from lightning_sfl import doctor
from tests.cli.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]


def findings(look: Callable[[], Iterator[doctor.Finding]]) -> list[doctor.Finding]:
    return list(look())


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What is said to be installed; anything else as it is."""
    said: dict[str, str | None] = {}

    def version(package: str) -> str:
        found = said[package] if package in said else known(package)
        if found is None:
            raise metadata.PackageNotFoundError(package)
        return found

    known = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    return said


def test_it_has_no_options(terminal: Terminal) -> None:
    code, out, err = terminal.types("doctor", "--help")
    assert (code, err) == (0, "")
    assert "usage: train.py doctor" in out
    assert "what to do about the rest" in out


def test_this_installation(terminal: Terminal) -> None:
    begin = time.monotonic()
    code, out, err = terminal.types("doctor")
    assert (code, err) == (0, "")
    assert all(line.startswith(("ok ", "warning ")) for line in out.splitlines())
    for word in ("python", "torch", "lightning", "jsonargparse", "torchmetrics", "numpy", "digits", "threads", "SFL"):
        assert word in out
    assert time.monotonic() - begin < 8
    assert list(terminal.folder.iterdir()) == []


@pytest.mark.parametrize("package", ["lightning", "pytorch-lightning"])
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_compromised_releases(package: str, version: str, versions: dict[str, str | None]) -> None:
    versions[package] = version
    problems = [finding.text for finding in findings(doctor.packages) if finding.state == "problem"]
    assert len(problems) == 1
    assert f"{package} {version} was a compromised release: uninstall it" in problems[0]


def test_packages_that_are_old_or_missing(versions: dict[str, str | None]) -> None:
    versions.update(torch="2.3.1+cpu", jsonargparse="4.4", torchmetrics=None)
    problems = [finding.text for finding in findings(doctor.packages) if finding.state == "problem"]
    assert problems == [
        "torch 2.3.1+cpu is too old: pip install 'torch>=2.4'",
        "jsonargparse 4.4 is too old: pip install 'jsonargparse>=4.39'",
        "torchmetrics is missing: pip install 'torchmetrics>=1.0'",
    ]


def test_extras(versions: dict[str, str | None]) -> None:
    versions.update(datasets=None, matplotlib="3.0")
    found = {finding.text.split()[0]: finding for finding in findings(doctor.extras)}
    assert found["datasets"].state == "warning"
    assert 'pip install "lightning_sfl[data]"' in found["datasets"].text
    assert found["matplotlib"].state == "ok"


@pytest.mark.parametrize(
    ("content", "state"), [("", "ok"), ("raise RuntimeError('operator torchvision::nms does not exist')", "problem")]
)
def test_torchvision(
    content: str, state: str, versions: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried in a process of its own: a broken one must not stay in this one."""
    versions["torchvision"] = "0.99"
    (tmp_path / "torchvision.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = findings(doctor.torchvision)
    assert finding.state == state
    assert ("pip uninstall torchvision" in finding.text) == (state == "problem")
    assert ("torchvision::nms does not exist" in finding.text) == (state == "problem")
    assert "torchvision" not in sys.modules


def test_unsafe_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert findings(doctor.safe_loading)[0].state == "warning"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    assert findings(doctor.safe_loading)[0].state == "ok"


def test_damaged_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(doctor.digits)[0].state == "ok"
    monkeypatch.setattr(doctor, "DIGITS_SHA256", "0" * 64)
    assert findings(doctor.digits)[0].state == "problem"


def test_folder_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert findings(doctor.runs_folder)[0].state == "ok"
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 10**18)
    assert findings(doctor.runs_folder)[0].state == "warning"
    (tmp_path / "runs").write_text("a file in its place")
    assert findings(doctor.runs_folder)[0].state == "problem"
    assert "--trainer.default_root_dir" in findings(doctor.runs_folder)[0].text


def test_a_failing_round_is_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> float:
        raise RuntimeError("no\nround")

    monkeypatch.setattr(doctor, "one_round", fails)
    assert doctor.examine() == 1
    assert "problem  one round of SFL fails: RuntimeError: no round" in capsys.readouterr().out


def test_it_speaks_without_torch(tmp_path: Path) -> None:
    """Where torch cannot be imported, the module still runs by itself and names the problem."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is gone')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "lightning_sfl.doctor"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert "problem  torch cannot be imported (libtorch.so is gone)" in done.stdout
    assert "Traceback" not in done.stderr
