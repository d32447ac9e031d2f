"""Commands that need no torch load none, start at once, and end with one line when they cannot work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.records import made

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "lightning", "numpy", "matplotlib", "jsonargparse")


def entry(*arguments: str, show: str = "") -> subprocess.CompletedProcess[str]:
    begin = "import sys\nfrom lightning_sfl.entry import main\n"
    code = f"{begin}try:\n    main(sys.argv[1:])\nfinally:\n    {show or 'pass'}"
    words = [sys.executable, "-c", code, *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", ["compare", "sweep", "gradients"])
def test_help_teaches_and_loads_nothing_heavy(command: str) -> None:
    done = entry(command, "--help", show=f"print(sorted({set(HEAVY)!r} & set(sys.modules)))")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"usage: train.py {command}" in done.stdout
    assert f"train.py {command} --" in done.stdout or f"train.py {command} runs" in done.stdout


def test_a_comparison_loads_no_torch(tmp_path: Path) -> None:
    made.run(tmp_path / "a", [0.1, 0.9])
    done = entry("compare", str(tmp_path / "a"), "--out", str(tmp_path / "o"), show="print('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert (tmp_path / "o" / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare",), "RUNS"),
        (("compare", "nowhere"), "runs='nowhere'"),
        (("compare", "configs"), "rounds.jsonl"),
        (("compare", "nowhere", "--las", "3"), "--las"),
        (("compare", "nowhere", "--last", "x"), "--last"),
        (("sweep",), "a sweep file, or --base and --grid"),
        (("sweep", "--config", "nowhere.yaml"), "config='nowhere.yaml'"),
        (("sweep", "--base", "configs/methods/sfl.yaml", "--grid", "model"), "KEY=A,B"),
        (("sweep", "--base", "configs/methods/sfl.yaml", "--grid", "model=["), "YAML"),
        (("sweep", "--base", "configs/methods/sfl.yaml", "--seeds", ""), "seeds"),
        (("sweep", "--base", "configs/methods/sfl.yaml", "--rounds", "0"), "trainer.max_epochs=0"),
        (("sweep", "--base", "configs/methods/sfl.yaml", "--jobs", "0"), "jobs=0"),
        (("sweep", "--base", "configs/methods/sfl.yaml", "--out", "train.py"), "out='train.py'"),
    ],
)
def test_what_cannot_work_ends_with_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = entry(*arguments)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_sweep_file_is_no_config_of_fit() -> None:
    done = entry("fit", "--config", "configs/experiments/compare_digits.yaml")
    assert done.returncode == 2
    assert "train.py sweep --config" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    folder = made.run(tmp_path / "a", [0.1, 0.9])
    (folder / "rounds.jsonl").write_text("nonsense\n" + (folder / "rounds.jsonl").read_text())
    done = entry("compare", str(folder), "--out", str(tmp_path / "o"))
    assert done.returncode == 2
    assert "line 1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_terminal_without_unicode_gets_plain_signs(tmp_path: Path) -> None:
    for seed in (0, 1):
        made.run(tmp_path / f"a{seed}", [0.1, 0.9 + 0.05 * seed], seed=seed)
    words = [sys.executable, "train.py", "compare", str(tmp_path), "--out", str(tmp_path / "o"), "--last", "1"]
    environment = {"PYTHONIOENCODING": "ascii", "PATH": ""}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "92.5 +- 3.5" in done.stdout
