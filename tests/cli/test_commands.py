"""Every command of the command line does its work on a run of two rounds, and says what it did."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_sfl.checkpoint import newest_good
from lightning_sfl.checks.lines import CHECKS
from lightning_sfl.cli import main
from tests.cli.terminal import SFL, SMALL, Terminal


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


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def digest(folder: Path) -> str:
    """Of the weights in the newest checkpoint."""
    newest = newest_good(folder / "checkpoints")
    assert newest is not None
    state = torch.load(newest, weights_only=True)["state_dict"]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()


def test_fit_records_its_rounds(trained: Path) -> None:
    assert [record["round"] for record in records(trained)] == [0, 1]
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["class_path"] == "lightning_sfl.SFL"
    assert config["data"]["num_clients"] == 3
    assert len(list((trained / "checkpoints").glob("round-*.ckpt"))) == 2


def test_its_config_runs_again_to_the_same_bits(trained: Path, terminal: Terminal) -> None:
    code, _, err = terminal.types("fit", f"--config={trained / 'config.yaml'}")
    assert (code, err) == (0, "")
    assert digest(terminal.folder / "runs" / "sfl" / "version_0") == digest(trained)


@pytest.mark.parametrize("flags", ["", "=skip_default"])
def test_a_printed_config_runs_again_to_the_same_bits(flags: str, trained: Path, terminal: Terminal) -> None:
    code, out, err = terminal.types("fit", SFL, *SMALL, f"--print_config{flags}")
    assert (code, err) == (0, "")
    assert not (terminal.folder / "runs").exists()
    terminal.writes("printed.yaml", out)
    assert terminal.types("fit", "--config", "printed.yaml")[0] == 0
    assert digest(terminal.folder / "runs" / "sfl" / "version_0") == digest(trained)


def test_later_configs_overlay_earlier_ones(terminal: Terminal) -> None:
    terminal.writes("one.yaml", "data: {num_clients: 5}\nmodel: {init_args: {local_epochs: 4, batch_size: 7}}\n")
    terminal.writes("two.yaml", "model: {class_path: FedAvg, init_args: {local_epochs: 6}}\n")
    _, out, _ = terminal.types(
        "fit", SFL, "--config=one.yaml", "--config=two.yaml", "--model.batch_size=9", "--print_config"
    )
    printed = yaml.safe_load(out)
    options = printed["model"]["init_args"]
    assert printed["model"]["class_path"] == "lightning_sfl.FedAvg"
    assert (printed["data"]["num_clients"], options["local_epochs"], options["batch_size"]) == (5, 6, 9)
    assert options["cut_layer"] == "pool"


def test_validate_and_test(trained: Path, terminal: Terminal) -> None:
    code, out, err = terminal.types("test", "--resume", str(trained))
    assert (code, err) == (0, "")
    assert "test/acc" in out
    by_file = terminal.types(
        "test", f"--config={trained / 'config.yaml'}", f"--ckpt_path={newest_good(trained / 'checkpoints')}"
    )
    assert [line for line in by_file[1].splitlines() if "test/" in line] == [
        line for line in out.splitlines() if "test/" in line
    ]
    assert "val/acc" in terminal.types("validate", "--resume", str(trained))[1]


def test_predict(trained: Path, terminal: Terminal) -> None:
    code, out, err = terminal.types(
        "predict", "--resume", str(trained), f"--trainer.default_root_dir={terminal.folder}"
    )
    assert (code, err) == (0, "")
    assert "predictions.csv" in out
    with (terminal.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == list(range(20))
    assert {int(row["prediction"]) for row in rows} <= set(range(10))


def test_cuts(terminal: Terminal) -> None:
    code, out, err = terminal.types("cuts", SFL)
    assert (code, err) == (0, "")
    assert any(line.startswith("pool") for line in out.splitlines())
    assert "refused: head (no trainable parameter lies behind it)" in out
    assert list(terminal.folder.iterdir()) == []


def test_partition(terminal: Terminal) -> None:
    code, out, err = terminal.types("partition", SFL, "--data.num_clients=4", "--output=parts")
    assert (code, err) == (0, "")
    assert "clients: 4" in out
    manifest = json.loads((terminal.folder / "parts" / "manifest.json").read_text())
    assert manifest["num_clients"] == 4
    again = ["--data.partition=FromFile", "--data.partition.path=parts/manifest.json", "--data.num_clients=null"]
    _, listed, _ = terminal.types("partition", SFL, *again, "--output=again")
    assert manifest["fingerprint"] in listed


def test_resume_goes_on_to_the_bits_of_a_whole_run(terminal: Terminal) -> None:
    terminal.types("fit", SFL, *SMALL, "--trainer.max_epochs=1", "--trainer.default_root_dir=short")
    code, _, err = terminal.types("fit", "--resume=short", "--trainer.max_epochs=2")
    assert (code, err) == (0, "")
    terminal.types("fit", SFL, *SMALL, "--trainer.default_root_dir=whole")
    short, whole = (terminal.folder / name / "sfl" / "version_0" for name in ("short", "whole"))
    assert [record["round"] for record in records(short)] == [0, 1]
    assert digest(short) == digest(whole)


def test_a_checkpoint_does_not_override_the_command_line(trained: Path, terminal: Terminal) -> None:
    """Neither the stored options of the model nor its learning rates."""
    start = [f"--config={trained / 'config.yaml'}", f"--ckpt_path={newest_good(trained / 'checkpoints')}"]
    rate = ["--model.client_optimizer=SGD", "--model.client_optimizer.lr=0"]
    code, _, err = terminal.types("fit", *start, *rate, "--trainer.max_epochs=3")
    assert (code, err) == (0, "")
    folder = terminal.folder / "runs" / "sfl" / "version_0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["client_optimizer"]["init_args"]["lr"] == 0
    states = [
        torch.load(newest_good(path / "checkpoints"), weights_only=True)["state_dict"] for path in (trained, folder)
    ]
    same = [torch.equal(states[0][name], states[1][name]) for name in states[0] if name.startswith("client_half")]
    assert all(same)
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])


METHOD = """
import torch
from lightning_sfl.methods import SFL

class Quiet(SFL):
    '''SFL with scaled cut gradients.

    Args:
        gain: what cut gradients are multiplied by.
    '''
    name = "quiet"

    def __init__(self, gain: float, **options):
        super().__init__(**options)
        self.gain = gain

class Thin(torch.nn.Sequential):
    def __init__(self, width: int = 3):
        stages = [torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Linear(width, 10)]
        super().__init__(*stages)
"""


def test_a_method_and_a_network_of_ones_own(terminal: Terminal) -> None:
    """By import path, from a file in the working folder; options of the parent are known."""
    terminal.writes("mine_alone.py", METHOD)
    own = ["--model=mine_alone.Quiet", "--model.gain=0.5", "--model.backbone=mine_alone.Thin", "--model.cut_layer=1"]
    sizes = ["--model.backbone.width=5", "--model.local_epochs=2"]
    data = [argument for argument in SMALL if not argument.startswith("--model")]
    code, _, err = terminal.types("fit", *own, *sizes, "--model.participants=2", *data)
    assert (code, err) == (0, "")
    config = yaml.safe_load((terminal.folder / "runs" / "quiet" / "version_0" / "config.yaml").read_text())
    assert config["model"]["class_path"] == "mine_alone.Quiet"
    assert config["model"]["init_args"]["gain"] == 0.5
    assert "'model.gian'; did you mean model.gain?" in terminal.is_refused("fit", *own, "--model.gian=3")
    assert "gain" in terminal.types("fit", "--model.help=mine_alone.Quiet")[1]


def test_help_teaches(terminal: Terminal) -> None:
    _, out, _ = terminal.types("--help")
    words = " ".join(out.split())
    for word in ("fit --config configs/methods/sfl.yaml", "doctor", "partition", "cuts", "fit --model.help SFL"):
        assert word in words
    code, out, _ = terminal.types("fit", "--help")
    words = " ".join(out.split())
    assert code == 0
    assert "One of CA2FL, CFL, Centralized, FedAsync, FedAvg, FedBuff" in words
    assert "the rule that deals the training rows to clients" in words
    assert "One of Dirichlet, FromFile, IID" in words
    assert "known subclasses" not in words
    _, out, _ = terminal.types("fit", "--model.help=SFL")
    assert "One of CausalTransformer, CharLSTM, DigitsCNN" in " ".join(out.split())
    assert "passes over its own data that a client makes in a round" in " ".join(out.split())
    assert out.count("\n") < 300


def test_diverging_ends_with_one_line_and_code_1(terminal: Terminal) -> None:
    rate = ["--model.server_optimizer=SGD", "--model.server_optimizer.lr=1e30", "--model.local_epochs=20"]
    code, _, err = terminal.types("fit", SFL, *SMALL, *rate)
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert "round 0" in err


def test_the_newest_two_checkpoints_and_the_best_stay(terminal: Terminal) -> None:
    """Resumed twice, the second time for nothing."""
    for rounds in (2, 4, 5, 5):
        resumed = ["--resume", "runs/sfl/version_0"] if rounds > 2 else [SFL, *SMALL]
        code, _, err = terminal.types("fit", *resumed, f"--trainer.max_epochs={rounds}")
        assert (code, err) == (0, "")
        found = sorted(path.stem for path in Path("runs/sfl/version_0/checkpoints").iterdir())
        assert len(found) == 3
        assert found[0].startswith("best-")
        assert found[1:] == [f"round-{done:06d}" for done in (rounds - 2, rounds - 1)]


def test_one_callback_needs_no_list(terminal: Terminal) -> None:
    alone = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/acc", "--trainer.callbacks.mode=max"]
    code, _, err = terminal.types("fit", SFL, *SMALL, *alone)
    assert code == 0, err


def test_an_enumeration_among_the_settings_is_recorded_by_its_value(terminal: Terminal) -> None:
    """Lightning's own Timer has one for a default."""
    code, _, err = terminal.types("fit", SFL, *SMALL, "--trainer.callbacks=Timer")
    assert (code, err) == (0, "")
    config = terminal.folder / "runs" / "sfl" / "version_0" / "config.yaml"
    timer = [each for each in yaml.safe_load(config.read_text())["trainer"]["callbacks"] if "Timer" in str(each)]
    assert [each["init_args"]["interval"] for each in timer] == ["step"]


def test_runs_without_a_logger_have_a_folder_each(terminal: Terminal) -> None:
    for version, rounds in enumerate((2, 1)):
        code, out, _ = terminal.types("fit", SFL, *SMALL, "--trainer.logger=false", f"--trainer.max_epochs={rounds}")
        assert code == 0
        assert f"runs/sfl/version_{version}" in out
    runs = terminal.folder / "runs" / "sfl"
    assert [len(records(runs / f"version_{version}")) for version in (0, 1)] == [2, 1]
    resumed = ("fit", "--resume", "runs/sfl/version_1", "--trainer.max_epochs=3", "--trainer.logger=false")
    assert terminal.types(*resumed)[0] == 0
    assert [len(records(runs / f"version_{version}")) for version in (0, 1)] == [2, 3]
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]


@pytest.mark.parametrize("command", ["cuts", "partition", "check"])
def test_every_command_takes_a_run_up(command: str, trained: Path, terminal: Terminal) -> None:
    few = ["--skip", str([check.name for check in CHECKS[1:]])] if command == "check" else []
    code, out, err = terminal.types(command, "--resume", str(trained), *few)
    assert (code, err) == (0, "")
    assert out
