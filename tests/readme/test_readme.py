"""Every command and every piece of Python in the README is run, word for word, in what looks like a fresh clone."""

from __future__ import annotations

import csv
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_sfl.methods import SFL, MiniBatchSFL
from lightning_sfl.records.palette import style_of
from tests.readme.warm import WarmPython
from tests.tiny import build, differing, fit, rows, whole

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
FILES = {found[1]: block for block in BLOCKS if (found := re.match(r"# (\w+\.py)\n", block))}
SCRIPTS = [block for block in BLOCKS if block not in FILES.values()]
DEMO = ["SFL", "MiniBatchSFL", "USFL", "GAS", "Mix2SFL", "MultiSFL", "FedAvg"]
RUN_BY_MAKE = {"make test"}  # this very suite


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files a clone would have, without the environment `make` sets up."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("lightning_sfl", "callbacks", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "Makefile", "setup.cfg", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def warm(clone: Path) -> Iterator[WarmPython]:
    """Python in the clone, with torch and Lightning imported."""
    with WarmPython(clone) as python:
        yield python


def run(command: str, warm: WarmPython) -> str:
    first, *words = shlex.split(command)
    if first == "python":
        done = warm.run(words)
    else:
        program = [str(Path(sys.executable).parent / first), *words]
        done = subprocess.run(program, cwd=warm.folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_commands_of_the_readme_work_in_order(clone: Path, warm: WarmPython) -> None:
    """One test, because later commands look at what earlier ones left behind."""
    assert len(COMMANDS) > 12
    for command in COMMANDS:
        if command in RUN_BY_MAKE:
            continue
        if command == "make demo":
            run_demo(clone, warm)
        elif command.startswith("tensorboard"):
            look_at_tensorboard(command, clone)
        else:
            run(command, warm)
    assert len((clone / "runs/sfl/version_0/rounds.jsonl").read_text().splitlines()) == 32
    assert (clone / "runs/predictions.csv").is_file()
    assert len(list((clone / "runs/two").glob("*/*/version_0/run.json"))) == 4
    assert (clone / "comparison/index.html").is_file()
    assert (clone / "runs/partition/classes_per_client.png").is_file()
    compares_the_method_of_the_readme(clone / "own_comparison")


def compares_the_method_of_the_readme(folder: Path) -> None:
    """A row of its own, all its dynamics measured, and a line in the picture."""
    rows = list(csv.DictReader((folder / "figures.csv").read_text().splitlines()))
    (own,) = [row for row in rows if row["method"] == "group_sfl"]
    assert own["label"] == "GroupSFL"
    for figure in ("accuracy", "scale_rel", "denom", "server_per_client", "start_distance", "mb_up"):
        assert own[f"{figure}_mean"] != "", figure
    steps = {row["label"]: float(row["server_steps_mean"]) for row in rows}
    assert steps["MiniBatchSFL"] < steps["GroupSFL"] < steps["SFL"]
    picture = (folder / "accuracy_rounds.svg").read_text()
    assert "GroupSFL" in picture
    assert style_of("group_sfl").colour in picture


def run_demo(clone: Path, warm: WarmPython) -> None:
    """The target's own commands with this interpreter, in a folder apart; the test accuracy is the promised one."""
    recipe = (clone / "Makefile").read_text().split("demo:")[1].split("\n\n")[0]
    lines = [line.strip() for line in recipe.splitlines()[1:]]
    trained = [line.replace("$(BIN)/python", "python") for line in lines if line.startswith("$(BIN)/python")]
    assert len(trained) == 4
    output = "".join(
        run(f"{line} --trainer.default_root_dir=demo".replace("runs/sfl", "demo"), warm) for line in trained[:2]
    )
    sweep, compare = (line.replace("runs/demo_compare", "demo/compare") for line in trained[2:])
    run(f"{sweep} --rounds 2 --out demo/compare", warm)  # all of them, in fewer rounds
    table = run(f"{compare} --last 1", warm)
    assert re.findall(r"^(\w+)  .*  2$", table, re.MULTILINE) == DEMO
    assert "over seeds" in table
    assert len(list((clone / "demo/compare/comparison").glob("*.svg"))) >= 6
    assert "runs/demo_compare/comparison/index.html" in recipe
    accuracy = re.search(r"test/acc\W+([\d.]+)", output)
    assert accuracy is not None
    assert float(accuracy.group(1)) >= 0.90


def look_at_tensorboard(command: str, clone: Path) -> None:
    """The page answers, and knows the run."""
    words = [sys.executable, "-m", "tensorboard.main", *shlex.split(command)[1:], "--port", "16123"]
    server = subprocess.Popen(words, cwd=clone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        answer = ""
        while "sfl" not in answer and time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                answer = urllib.request.urlopen("http://127.0.0.1:16123/data/runs", timeout=5).read().decode()
            except OSError:
                continue
        assert "sfl/version_0" in answer
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("script", SCRIPTS)
def test_python_of_the_readme_works(script: str, clone: Path, tmp_path: Path) -> None:
    (clone / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test/acc" in done.stdout


def test_the_method_of_the_readme_lies_between_two_that_are_known(tmp_path: Path) -> None:
    """Groups of one are SFL, one group of all is MiniBatch-SFL, both bit for bit; two at a time is neither."""
    (tmp_path / "group_sfl.py").write_text(FILES["group_sfl.py"])
    spec = importlib.util.spec_from_file_location("group_sfl", tmp_path / "group_sfl.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def trained(cls: type, **options: object) -> dict:
        return whole(fit(build(cls, batch_size=4, **options), rows((8, 8, 8)), rounds=2))

    alone, all_together = trained(module.GroupSFL, group=1), trained(module.GroupSFL, group=3)
    assert differing(alone, trained(SFL)) == []
    assert differing(all_together, trained(MiniBatchSFL)) == []
    assert differing(trained(module.GroupSFL), alone) != []
    assert differing(trained(module.GroupSFL), all_together) != []
