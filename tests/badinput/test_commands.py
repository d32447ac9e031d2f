"""Commands that cannot work are refused in one line that names what is missing or wrong."""

from __future__ import annotations

import pytest

from tests.cli.terminal import SFL, Terminal

METHODS = ("SFL", "FedAvg", "MiniBatchSFL")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no command given", "fit", "partition", "doctor"]),
        (["fti", SFL], ["no command called 'fti'", "did you mean fit?", "doctor"]),
        (["fit"], ["model is missing", "configs/methods/sfl.yaml", *METHODS]),
        (["fit", "--model=SFL", "--model.backbone=DigitsCNN"], ["model.cut_layer is missing", "--model.cut_layer"]),
        (["fit", "--model=SFL"], ["model.backbone, model.cut_layer are missing"]),
        (["cuts", SFL, "--data.val_fraction=2"], ["data.val_fraction=2.0 is not allowed"]),
        (["partition", SFL, "--data.num_clients=100000"], ["data.num_clients=100000 is not allowed"]),
        (["test", SFL, "--model.cut_layer=poool"], ["model.cut_layer='poool'", "pool"]),
        (["--config", "configs/methods/sfl.yaml"], ["no command given"]),
        *(([command], ["model is missing", *METHODS]) for command in ("validate", "test", "predict", "cuts")),
        *(([command, "--config"], ["--config: expected one argument"]) for command in ("fit", "test", "partition")),
        *(([command, "--config="], ["config='' cannot be read"]) for command in ("predict", "cuts", "partition")),
        *(([command, "--config=no.yaml"], ["config='no.yaml' cannot be read"]) for command in ("validate", "cuts")),
        *(([command, SFL, "--config=no.yaml"], ["config='no.yaml' cannot"]) for command in ("test", "partition")),
        *(([command, SFL, "extra"], ["'extra'", "--name value"]) for command in ("cuts", "predict", "validate")),
        *(([command, "--resume="], ["resume='' is not allowed: the folder"]) for command in ("test", "predict")),
        *(([command, SFL, "--ckpt_path="], ["ckpt_path", "a checkpoint file"]) for command in ("test", "validate")),
        (["predict", SFL, "--ckpt_path=-3"], ["ckpt_path='-3' is not allowed: a checkpoint file"]),
        (["predict", SFL, "--return_predictions=maybe"], ["return_predictions='maybe' is not allowed: true or false"]),
        (["predict", SFL, "--trainer.default_root_dir=/proc/x"], ["trainer.default_root_dir='/proc/x'", "written to"]),
        (["predict", SFL, "--trainer.limit_predict_batches=-1"], ["invalid value -1.0 for limit_predict_batches"]),
        (["test", SFL, "--verbose=maybe"], ["verbose='maybe' is not allowed: true or false"]),
        (["cuts", SFL, "--data.source=Synthetic", "--data.source.rows=-1"], ["data.source.rows=-1 is not allowed"]),
        (["cuts", SFL, "--data.source.rows=3"], ["no setting called 'data.source.rows': there are none"]),
        (["cuts", SFL, "--output=x"], ["no setting called 'output'"]),
        (["cuts", SFL, "--model.participants=-1"], ["model.participants=-1 is not allowed"]),
        (["partition", SFL, "--output"], ["--output: expected one argument"]),
        (["partition", SFL, "--output="], ["output='' is not allowed: a folder"]),
        (["partition", SFL, "--output=/proc/x"], ["output='/proc/x' is not allowed: a folder that can be written to"]),
        (["partition", SFL, "--data.num_clients=-2"], ["data.num_clients=-2 is not allowed: 1 or more"]),
        (["partition", SFL, "--data.partition="], ["data.partition: no partition called ''", "Dirichlet"]),
        (["partition", SFL, "--data.partition=null"], ["data.partition=None is not allowed", "Dirichlet"]),
        (["partition", SFL, "--threads=-1"], ["threads=-1 is not allowed"]),
        (["doctor", "extra"], ["unrecognized arguments: extra"]),
        (["doctor", "--config", "x.yaml"], ["unrecognized arguments: --config x.yaml"]),
    ],
    ids=str,
)
def test_commands_are_refused(arguments: list[str], words: list[str], terminal: Terminal) -> None:
    line = terminal.is_refused(*arguments)
    assert [word for word in words if word not in line] == [], line
