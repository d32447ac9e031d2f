"""What early stopping and checkpoints watch: a metric that nobody gives is refused before training."""

from __future__ import annotations

import pytest
import yaml

from tests.cli.terminal import SFL, SMALL, Terminal

FIT = ("fit", SFL)

MONITOR, MODE = "trainer.callbacks.monitor", "trainer.callbacks.mode"


MONITORS = [
    ([], ["trainer.callbacks.monitor is missing", "--trainer.callbacks.monitor"]),
    (["--trainer.callbacks.monitor=val_acc"], [f"{MONITOR}='val_acc' is", "did you mean val/acc?", "train/client_lr"]),
    (["--trainer.callbacks.monitor="], [f"{MONITOR}='' is not allowed: EarlyStopping can watch val/acc, val/loss"]),
    (["--trainer.callbacks.monitor=epoch"], [f"{MONITOR}='epoch' is not allowed", "can watch val/acc"]),
    (["--trainer.callbacks.monitor=train/server_lr", "--model=FedAvg"], ["did you mean train/client_lr?"]),
    (["--trainer.callbacks.monitor=test/loss", "--data.eval_set=test"], [f"{MONITOR}='test/loss'", "decide nothing"]),
    (["--trainer.callbacks.monitor=val/loss", "--data.eval_set=test"], [f"{MONITOR}='val/loss'", "decide nothing"]),
    (["--trainer.callbacks.monitor=val/loss", "--trainer.callbacks.mode=up"], [f"{MODE}='up' is not allowed: min or"]),
    (["--trainer.callbacks.monitor=val/acc"], [f"{MODE}='min' is not allowed: max where monitor is val/acc"]),
    (["--trainer.callbacks.monitor=val/loss", "--trainer.callbacks.mode=max"], [f"{MODE}='max' is not allowed: min"]),
]


@pytest.mark.parametrize(("arguments", "words"), MONITORS, ids=lambda case: " ".join(case)[:50])
def test_what_is_watched(arguments: list[str], words: list[str], terminal: Terminal) -> None:
    """Also where the callback is listed in a config."""
    line = terminal.is_refused(*FIT, "--trainer.callbacks=EarlyStopping", *arguments)
    assert [word for word in words if word not in line] == [], line
    given = [argument.removeprefix("--trainer.callbacks.").partition("=") for argument in arguments]
    own = {name: value for name, _, value in given if not name.startswith("--")}
    callbacks = [{"class_path": "EarlyStopping", "init_args": own}]
    name = terminal.writes("mine.yaml", yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    rest = [argument for argument in arguments if not argument.startswith("--trainer.callbacks.")]
    assert terminal.is_refused(*FIT, f"--config={name}", *rest) == line


def test_checkpoints_of_ones_own(terminal: Terminal) -> None:
    own = "--trainer.callbacks=ModelCheckpoint"
    for monitor in ("val_acc", "val/accuracy", "rounds"):
        line = terminal.is_refused(*FIT, own, f"--trainer.callbacks.monitor={monitor}", "--trainer.callbacks.mode=max")
        assert f"{MONITOR}='{monitor}' is not allowed: did you mean " in line
    code, _, err = terminal.types(*FIT, *SMALL, own, "--trainer.callbacks.monitor=step", "--trainer.callbacks.mode=max")
    assert (code, err) == (0, "")
    assert list(terminal.folder.glob("runs/sfl/version_0/checkpoints/epoch=1-step=*.ckpt"))


OWN_METRIC = """from lightning_sfl.methods import SFL
class Mine(SFL):
    def merge(self, plan):
        super().merge(plan)
        self.log("own", 1.0, logger=False)
"""


def test_a_method_of_ones_own_may_give_other_metrics(terminal: Terminal) -> None:
    """Whether it does shows after the first round: in one line all the same."""
    terminal.writes("gives_own.py", OWN_METRIC)
    run = [*FIT, *SMALL, "--model=gives_own.Mine", "--trainer.callbacks=EarlyStopping"]
    code, _, err = terminal.types(*run, "--trainer.callbacks.monitor=own")
    assert (code, err) == (0, "")
    code, _, err = terminal.types(*run, "--trainer.callbacks.monitor=owns")
    assert code == 2
    assert err.startswith("error: Early stopping conditioned on metric `owns` which is not available")
    assert "`own`" in err
    assert err.count("\n") == 1
