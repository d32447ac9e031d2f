"""Training losses equal those on record: bit for bit where torch and the machine's arithmetic do, else to 1e-5."""

from __future__ import annotations

import pytest

from lightning_sfl.methods import HoloGrad, SplitMethod
from tests.every_method import METHODS
from tests.golden.curves import FOLDER, ROUNDS, arithmetic, losses, recorded
from tests.tiny import build


@pytest.mark.parametrize("cls", METHODS)
def test_losses_are_those_on_record(cls: type[SplitMethod]) -> None:
    golden = recorded(build(cls).method_name)
    now, then = losses(cls), [float.fromhex(text) for text in golden["train_loss"]]
    assert len(then) == ROUNDS
    if {key: golden[key] for key in arithmetic()} == arithmetic():
        assert [loss.hex() for loss in now] == golden["train_loss"]
    # HoloGrad draws from digests of the weights: where a bit of them differs, so do all directions of the next round.
    agreeing = 2 if cls is HoloGrad and {key: golden[key] for key in arithmetic()} != arithmetic() else ROUNDS
    assert now[:agreeing] == pytest.approx(then[:agreeing], rel=1e-5)


def test_the_records_are_of_these_methods_and_tell_them_apart() -> None:
    names = {path.stem for path in FOLDER.glob("*.json")}
    assert names == {build(cls).method_name for cls in METHODS}
    curves = [tuple(recorded(name)["train_loss"]) for name in sorted(names)]
    # SFL-V1 and FedAvg are one method by another name; no other two may coincide.
    assert recorded("sfl_v1")["train_loss"] == recorded("fedavg")["train_loss"]
    assert len(set(curves)) == len(curves) - 1
