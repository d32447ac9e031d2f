"""Configs, modules, data, checkpoints and folders that cannot be used are refused in one line that names them."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_sfl import trainer as trainer_module
from lightning_sfl.checkpoint import DurableCheckpointIO
from lightning_sfl.cli import main
from lightning_sfl.config_files import read_config
from lightning_sfl.core.errors import ConfigError
from tests.cli.terminal import SFL, SMALL, Terminal

ROOT = Path(__file__).resolve().parents[2]
TAG = "seed_everything: !!python/object/apply:os.system ['touch hacked']\n"

CONFIGS = [
    (b"", ["this one is empty"]),
    (b"# nothing\n", ["this one is empty"]),
    (b"a: [1\n b: }{", ["is not YAML", "line 2"]),
    (b"- 1\n- 2\n", ["settings as `key: value`", "list"]),
    (b"hello\n", ["settings as `key: value`"]),
    (bytes(range(256)), ["binary"]),
    (b"\x89PNG\r\n\x1a\n\x00\x00", ["binary"]),
    (b"a: \x00\n", ["is not YAML"]),
    (TAG.encode(), ["is not YAML", "python/object/apply:os.system"]),
    (b"foo: 3\n", ["no setting called 'foo'", "known:"]),
    (b"optimizer: {}\n", ["no setting called 'optimizer'", "known:"]),
    (b"3: 4\n", ["no setting called '3'"]),
    (b"trainer:\n  max_epoch: 3\n", ["'trainer.max_epoch'", "did you mean trainer.max_epochs?"]),
    (b"trainer:\n  foo: {}\n", ["'trainer.foo'"]),
    (b"trainer: null\n", ["trainer=None is not allowed", "`name: value`"]),
    (b"trainer: 3\n", ["trainer=3 is not allowed", "`name: value`"]),
    (b"data: [1]\n", ["data=[1] is not allowed", "`name: value`"]),
    (b"data:\n  foo: {}\n", ["'data.foo'", "num_clients"]),
    (b"model: 3\n", ["model=3 is not allowed", "SFL"]),
    (b"model: null\n", ["model is missing"]),
    (b"model:\n  init_args: null\n", ["model.init_args=None is not allowed"]),
    (b"model:\n  init_args:\n    foo: {}\n", ["'foo' below model", "local_epochs"]),
    (b"model:\n  init_args:\n    foo: 3\n", ["'model.foo'", "local_epochs"]),
    (b"model:\n  foo: 3\n", ["'model.foo'", "local_epochs"]),
    (b"model:\n  init_args:\n    clusters: 2\n", ["model.clusters has no meaning for SFL: ", "; IFCA has it"]),
    (
        b"model:\n  init_args:\n    staleness: {class_path: Hinge}\n",
        [
            "model.staleness has no meaning for SFL: it weighs updates that come late",
            "none outlives its round or all count in full; FedAsync, FedBuff and GAS have it",
        ],
    ),
    (b"model:\n  init_args:\n    seed: 5\n", ["model.seed=5", "seed_everything"]),
    (b"model:\n  class_path: SLF\n", ["no method called 'SLF'", "did you mean SFL?"]),
    (b"model:\n  init_args:\n    backbone:\n      class_path: DigitCNN\n", ["model.backbone", "DigitsCNN"]),
    (b"model:\n  init_args:\n    client_clip: .nan\n", ["model.client_clip=nan is not allowed: a finite number > 0"]),
    (b"data:\n  val_fraction: .nan\n", ["data.val_fraction=nan is not allowed"]),
    (b"data:\n  num_clients: 1.5\n", ["data.num_clients=1.5 is not allowed"]),
]


@pytest.mark.parametrize(("content", "words"), CONFIGS, ids=lambda case: repr(case)[:40])
def test_config(content: bytes, words: list[str], terminal: Terminal) -> None:
    name = terminal.writes("mine.yaml", content)
    line = terminal.is_refused("fit", SFL, f"--config={name}")
    assert [word for word in words if word not in line] == [], line
    assert not (terminal.folder / "hacked").exists()


@pytest.mark.parametrize("path", ["missing.yaml", "."])
def test_config_that_is_no_file(path: str, terminal: Terminal) -> None:
    assert f"config='{path}' cannot be read" in terminal.is_refused("fit", "--config", path)


REFUSING = """from lightning_sfl.methods import SFL
class Mine(SFL):
    def __init__(self, **options):
        raise ValueError("no")
"""
MODULES = {
    "import nothing_like_this\n": ["cannot be imported", "nothing_like_this", "line 1"],
    "def f(:\n": ["cannot be imported", "SyntaxError", "line 1"],
    "x = 1 / 0\n": ["cannot be imported", "ZeroDivisionError: division by zero", "line 1"],
    "class Mine:\n    pass\n": ["that is no method", "known: CA2FL, CFL, Centralized"],
    "Mine = 3\n": ["that is no method", "known: CA2FL, CFL, Centralized"],
    "class Other:\n    pass\n": ["cannot be imported", "has no attribute 'Mine'"],
    "from lightning_sfl.methods import SplitMethod\nclass Mine(SplitMethod):\n    pass\n": ["Mine has no serve()"],
    "from lightning_sfl.methods import SFL\nclass Mine(SFL):\n    name = '../../x'\n": [
        "name='../../x'",
        "letters",
    ],
    REFUSING: ["model=Mine is not allowed: no"],
}


@pytest.mark.parametrize(("number", "code"), list(enumerate(MODULES)), ids=[repr(code)[-40:] for code in MODULES])
def test_module_of_the_user(number: int, code: str, terminal: Terminal) -> None:
    module = f"users_module_{number}"
    terminal.writes(f"{module}.py", code)
    line = terminal.is_refused("fit", SFL, f"--model={module}.Mine")
    assert [word for word in MODULES[code] if word not in line] == [], line


def test_module_that_is_not_there(terminal: Terminal) -> None:
    assert "model='nowhere.Mine' cannot be imported" in terminal.is_refused("fit", SFL, "--model=nowhere.Mine")


@pytest.mark.parametrize("error", ["TypeError", "AttributeError", "KeyError", "RuntimeError"])
def test_errors_that_are_not_the_users_keep_their_traceback(error: str, terminal: Terminal) -> None:
    head = "from lightning_sfl.methods import SFL\nclass Mine(SFL):\n    def __init__(self, **options):\n"
    terminal.writes(f"buggy_{error}.py", f"{head}        super().__init__(**options)\n        raise {error}('a bug')\n")
    with pytest.raises(vars(builtins)[error], match="a bug"):
        terminal.types("fit", SFL, f"--model=buggy_{error}.Mine")


def test_schedules_of_participants(terminal: Terminal) -> None:
    fixed = ["fit", SFL, "--model.selection=FixedSchedule"]
    assert "model.selection.path='no.json'" in terminal.is_refused(*fixed, "--model.selection.path=no.json")
    terminal.writes("words.json", '[["a"]]')
    assert "is not a schedule" in terminal.is_refused(*fixed, "--model.selection.path=words.json")
    terminal.writes("short.json", "[[0], [1]]")
    assert "lists 2 rounds, but round 2" in terminal.is_refused(*fixed, "--model.selection.path=short.json")
    terminal.writes("far.json", "[[0], [99]]")
    line = terminal.is_refused(*fixed, "--model.selection.path=far.json", "--trainer.max_epochs=2")
    assert "clients [99] that do not exist" in line


def test_partitions_and_data(terminal: Terminal) -> None:
    given = ["fit", SFL, "--data.partition=FromFile", "--data.num_clients=null"]
    assert "partition file no.json" in terminal.is_refused(*given, "--data.partition.path=no.json")
    terminal.writes("twice.json", "[[0, 1], [1]]")
    assert "a row is listed twice" in terminal.is_refused(*given, "--data.partition.path=twice.json")
    assert "num_clients=20" in terminal.is_refused(*given[:-1], "--data.partition.path=twice.json")
    parquet = ["fit", SFL, "--data.source=Parquet"]
    assert "train data nowhere: no such file" in terminal.is_refused(*parquet, "--data.source.train=nowhere")
    terminal.writes("train.parquet", b"not parquet")
    cache = f"--data.source.cache_dir={terminal.folder}"
    assert "not a readable parquet file" in terminal.is_refused(*parquet, "--data.source.train=train.parquet", cache)
    few = ["--data.source=Synthetic", "--data.source.rows=4"]
    assert "data.num_clients=20" in terminal.is_refused("fit", SFL, *few)
    assert "source names no owner" in terminal.is_refused("fit", SFL, "--data.partition=Natural")


@pytest.mark.parametrize("place", ["a_file", "a_file/below", "/proc/nothing_here"])
def test_folder_that_cannot_be_written(place: str, terminal: Terminal) -> None:
    terminal.writes("a_file", "")
    line = terminal.is_refused("fit", SFL, f"--trainer.default_root_dir={place}")
    assert f"trainer.default_root_dir='{place}' is not allowed: a folder that can be written to" in line


@pytest.mark.parametrize("place", ["a_file", "a_file/below"])
def test_results_of_other_commands_that_cannot_be_written(place: str, terminal: Terminal) -> None:
    terminal.writes("a_file", "")
    allowed = "is not allowed: a folder that can be written to"
    assert f"output='{place}' {allowed}" in terminal.is_refused("partition", SFL, f"--output={place}")
    line = terminal.is_refused("predict", SFL, f"--trainer.default_root_dir={place}")
    assert f"trainer.default_root_dir='{place}' {allowed}" in line
    for value, shown in {"null": "None", "''": "''"}.items():
        terminal.writes("mine.yaml", f"output: {value}\n")
        line = terminal.is_refused("partition", SFL, "--config=mine.yaml")
        assert f"output={shown} is not allowed: a folder" in line


def test_run_names_stay_in_their_folder(tmp_path: Path) -> None:
    for name in ("..", "../x", "a/b", "", "/x", ".hidden"):
        with pytest.raises(ConfigError, match="is not allowed: letters, digits"):
            trainer_module(1, name=name, default_root_dir=tmp_path, logger=None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two rounds."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py"])
        patch.setattr(sys, "path", list(sys.path))
        main(["fit", SFL, *SMALL])
    return folder / "runs" / "sfl" / "version_0"


def test_checkpoints(trained: Path, terminal: Terminal) -> None:
    good = sorted((trained / "checkpoints").glob("round-*.ckpt"))[-1]
    run = ["fit", SFL, *SMALL]

    def refused(path: str | Path, *more: str) -> str:
        line = terminal.is_refused(*run, f"--ckpt_path={path}", *more)
        assert "ckpt_path" in line or "max_epochs" in line, line
        return line

    assert "a checkpoint file" in refused("missing.ckpt")
    assert "a checkpoint file" in refused("last")
    assert "does not end as one" in refused(terminal.writes("words.ckpt", "words"))
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 1
    assert "bytes do not match" in refused(terminal.writes("damaged.ckpt", bytes(content)))
    torch.save({"state_dict": {}}, terminal.folder / "foreign.ckpt")
    assert "foreign" in refused("foreign.ckpt")
    DurableCheckpointIO().save_checkpoint({"state_dict": {}}, terminal.folder / "other" / "other.ckpt")
    assert "was not written by lightning_sfl" in refused("other/other.ckpt")
    assert "method='sfl', this run method='fedavg'" in refused(good, "--model=FedAvg")
    assert "cut_layer='pool', this run cut_layer='relu1'" in refused(good, "--model.cut_layer=relu1")
    assert "seed=0, this run seed=1" in refused(good, "--seed_everything=1")
    assert "has partition=" in refused(good, "--data.num_clients=4")
    assert "2 or more: so many rounds" in refused(good, "--trainer.max_epochs=1")


def test_resume_of_what_is_no_run(trained: Path, terminal: Terminal) -> None:
    for path in ("nowhere", "."):
        assert f"resume='{path}' is not allowed: the folder of a run" in terminal.is_refused("fit", "--resume", path)
    assert "this run method='fedavg'" in terminal.is_refused("fit", "--resume", str(trained), "--model=FedAvg")


def test_a_run_without_a_checkpoint_cannot_be_judged(terminal: Terminal) -> None:
    config = (ROOT / "configs" / "methods" / "sfl.yaml").read_text()
    (terminal.folder / "begun").mkdir()
    terminal.writes("begun/config.yaml", config)
    for command in ("validate", "test", "predict"):
        line = terminal.is_refused(command, "--resume", "begun")
        assert "resume='begun' is not allowed: a run with a good checkpoint, and this one has none yet" in line
    terminal.writes("begun/config.yaml", "")
    assert "config='begun/config.yaml' is not allowed" in terminal.is_refused("test", "--resume", "begun")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_network_without_training_is_called_one(command: str, terminal: Terminal) -> None:
    code, out, err = terminal.types(command, SFL, *SMALL)
    assert (code, err) == (0, "")
    assert out.startswith("no checkpoint was named: this is about the network as it was built")


def test_the_same_config_twice_is_the_config(terminal: Terminal) -> None:
    for command in ("cuts", "partition"):
        once, twice = (terminal.types(command, *[SFL] * count) for count in (1, 2))
        assert once == twice
        assert (once[0], once[2]) == (0, "")


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """What a shell sees: exit code 2, one line on stderr, nothing on stdout, nothing written."""
    command = [sys.executable, str(ROOT / "train.py"), "fit", SFL, "--model.local_epochs=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "model.local_epochs=0 is not allowed: an integer >= 1" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_bug_shows_its_traceback(tmp_path: Path) -> None:
    code = (
        "from lightning_sfl.methods import SFL\nclass Mine(SFL):\n    def serve(self, uploads):\n        return 1 / 0\n"
    )
    (tmp_path / "mine.py").write_text(code)
    command = [sys.executable, str(ROOT / "train.py"), "fit", SFL, *SMALL, "--model=mine.Mine"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert 'mine.py", line 4' in done.stderr


def test_configs_hold_plain_values_only(tmp_path: Path) -> None:
    file = tmp_path / "plain.yaml"
    file.write_text("a: 1\nb: [x, 2.5]\nc: {d: null}\n")
    assert read_config(str(file)) == {"a": 1, "b": ["x", 2.5], "c": {"d": None}}
    for tag in ("!!python/name:os.system", "!!python/object/new:os.system [x]", "!!python/module:os", "!own x"):
        file.write_text(f"a: {tag}\n")
        with pytest.raises(ConfigError, match="is not YAML"):
            read_config(str(file))
