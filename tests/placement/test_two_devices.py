"""One process with the halves on two devices: nothing else meets, and nothing but what crosses the cut is copied.

The devices are made of the processor, see `two_devices`; on GPUs this has never been run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_sfl.callbacks import DEFAULTS, OPTIONAL, RoundRecord
from lightning_sfl.checkpoint import DurableCheckpointIO
from lightning_sfl.core.aggregators import CosineWeighted, Median
from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.oort import Oort
from lightning_sfl.methods import (
    CA2FL,
    CFL,
    GAS,
    IFCA,
    SFL,
    SFLV1,
    SFLV2,
    USFL,
    Centralized,
    FedAvg,
    FedBuff,
    FedSGD,
    HoloGrad,
    MiniBatchSFL,
    Mix2SFL,
    MultiSFL,
    PerFedAvg,
    Reptile,
    ScaffoldSFL,
    SFLProx,
    SplitLearning,
    SplitMethod,
)  # fmt: skip
from tests.every_method import rich_of
from tests.placement.two_devices import CPU, FIRST, SECOND, Apart, Halves, Pretended, TwoDevices, on, two_devices
from tests.tiny import Recorder, build, differing, furthest, network, rows, sgd, trainer, whole

UNCUT = [FedAvg, FedSGD]
QUICK = [SFL, USFL, FedAvg]
OTHERS = [SFLV1, SFLV2, SplitLearning, MiniBatchSFL, Mix2SFL, MultiSFL, GAS, FedSGD, ScaffoldSFL, SFLProx]
APART = {"accelerator": Pretended(), "devices": 2}


class Afterwards(L.Callback):
    """Forgets the copies of the start, and looks where everything is at the end of every round."""

    def __init__(self, devices: TwoDevices) -> None:
        self.devices, self.places = devices, []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.devices.copies.clear()
        self.said = [line for line in pl_module.describe() if line.startswith("placement: ")]

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        clients = {where for half in (pl_module.client_half, *pl_module.slots) for where in on(half)}
        servers = {where for half in (pl_module.server_half, *pl_module.server_slots) for where in on(half)}
        self.places.append((clients, servers))


def trained(
    cls: type[SplitMethod], devices: TwoDevices | None = None, watching: list[L.Callback] | None = None,
    rounds: int = 3, resume: Path | None = None, save: Path | None = None, net: nn.Module | None = None,
    folder: Path | None = None, **options: Any,
) -> tuple[SplitMethod, L.Trainer]:  # fmt: skip
    """A run on two devices, or on the processor."""
    options = {"client_optimizer": sgd(0.1, 0.9), "server_optimizer": sgd(0.1, 0.9), "batch_size": 4, **options}
    method = build(cls, network(0.2, norm=True) if net is None else net, **{"participants": 3, **options})
    where = {} if devices is None else {**APART, "strategy": Halves()}
    evaluated = {"limit_val_batches": 1.0 if watching is None else 0}
    run = trainer(
        rounds, watching or [], plugins=[DurableCheckpointIO()], default_root_dir=folder, **evaluated, **where
    )
    run.fit(method, rows((5, 4, 9, 2)), ckpt_path=resume)
    if save is not None:
        run.save_checkpoint(save)
    return method, run


@pytest.mark.filterwarnings("ignore:You called `self.log")
@pytest.mark.parametrize("cls", [*QUICK, *(pytest.param(cls, marks=pytest.mark.slow) for cls in OTHERS)])
def test_what_is_copied_is_what_crosses_the_cut(cls: type[SplitMethod]) -> None:
    alone, told = Recorder(), Recorder()
    on_one, _ = trained(cls, watching=[alone], **rich_of(cls))
    with two_devices() as devices:
        afterwards = Afterwards(devices)
        on_two, run = trained(cls, devices, [told, afterwards], **rich_of(cls))
        assert afterwards.places == [({FIRST}, {SECOND})] * 3
        assert afterwards.said[0].endswith("the server half on meta:1, the client halves on meta:0")
        up, down = devices.crossed(FIRST, SECOND), devices.crossed(SECOND, FIRST)
        run.test(on_two, rows(), verbose=False)
    assert differing(whole(on_one), whole(on_two)) == []
    assert [type(event) for event in told.events] == [type(event) for event in alone.events]
    counted = {key: sum(each.get(key, 0) for each in told.traffic_bytes) for key in told.traffic_bytes[0]}
    if cls not in UNCUT:
        assert up == counted["smashed", "up"] + counted["labels", "up"]
        assert down == counted["cut_gradients", "down"]
    else:  # each row of the smashed data, 8 numbers, with its label, and back comes the gradient
        trained_rows = sum(event.rows for event in told.events if type(event).__name__ == "ClientEnd")
        assert (up, down) == (trained_rows * (8 * 4 + 8), trained_rows * 8 * 4)
    assert on(on_two) == {CPU}
    assert "link" not in vars(on_two)


RICHER: dict[str, dict[str, Any]] = {
    "moments": {"client_optimizer": torch.optim.Adam, "server_optimizer": torch.optim.Adagrad},
    "clipped": {"client_clip": 0.1},
    "moved": {"merge_optimizer": torch.optim.Adam},
    "robust": {"aggregator": Median()},
    "looking back": {"aggregator": CosineWeighted(reference="previous")},
    "stacked": {"client_engine": "stacked", "net": network()},
    "own layers": {"bn_buffers": "local"},
    "away": {"attendance": Attendance(availability=0.7)},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", RICHER.values(), ids=RICHER)
@pytest.mark.parametrize("cls", [USFL, FedAvg])
def test_options_that_look_at_both_halves(cls: type[SplitMethod], options: dict[str, Any]) -> None:
    on_one, _ = trained(cls, **options)
    with two_devices() as devices:
        on_two, _ = trained(cls, devices, **options)
    if cls is FedAvg and "client_clip" in options:  # one norm over two devices, which torch sums up in its own order
        assert furthest(whole(on_one), whole(on_two)) < 1e-6
    else:
        assert differing(whole(on_one), whole(on_two)) == []


@pytest.mark.slow
def test_dynamics_and_a_selection_that_learns() -> None:
    for options in (
        {"dynamics": Dynamics(server_steps=2, client_scale="joint")},
        {"selection": Oort(blacklist_after=0)},
    ):
        on_one, _ = trained(SFL, **options)
        with two_devices() as devices:
            on_two, _ = trained(SFL, devices, **options)
        assert differing(whole(on_one), whole(on_two)) == []


def every_watcher() -> list[L.Callback]:
    """All that the command line can switch on, in every round; the record of it all comes last."""
    known = {key: kind for key, kind in {**DEFAULTS, **OPTIONAL}.items() if key not in ("round_record", "stop_at")}
    return [*(kind(every=1) for kind in known.values()), RoundRecord()]


@pytest.mark.slow
@pytest.mark.parametrize("cls", [SFL, FedAvg, GAS, MultiSFL])
def test_watchers_write_what_they_write_on_one_device(cls: type[SplitMethod], tmp_path: Path) -> None:
    trained(cls, watching=every_watcher(), folder=tmp_path / "one", **rich_of(cls))
    with two_devices() as devices:
        trained(cls, devices, every_watcher(), folder=tmp_path / "two", **rich_of(cls))
    one, two = ((tmp_path / folder / "rounds.jsonl").read_text() for folder in ("one", "two"))
    assert one == two
    assert "oracle/client_G" in one


@pytest.mark.slow
def test_a_run_goes_on_wherever_its_halves_are(tmp_path: Path) -> None:
    for cls in (SFL, GAS, MultiSFL, FedAvg, FedBuff, CA2FL, ScaffoldSFL, CFL):
        options = {"persist_server_optimizer": True, "server_optimizer": torch.optim.Adam, **rich_of(cls)}
        options |= {"aggregator": CosineWeighted(reference="previous")} if cls in (SFL, FedAvg) else {}
        straight, _ = trained(cls, rounds=4, **options)
        with two_devices() as devices:
            trained(cls, devices, rounds=2, save=tmp_path / "two.ckpt", **options)
        saved = torch.load(tmp_path / "two.ckpt", weights_only=True)
        assert {tensor.device for tensor in saved["state_dict"].values()} == {CPU}
        trained(cls, rounds=3, resume=tmp_path / "two.ckpt", save=tmp_path / "one.ckpt", **options)
        with two_devices() as devices:
            resumed, _ = trained(cls, devices, rounds=4, resume=tmp_path / "one.ckpt", **options)
        assert differing(whole(straight), whole(resumed)) == []


@pytest.mark.parametrize("cls", [Centralized, HoloGrad, IFCA])
def test_methods_that_do_not_part_their_halves_are_refused(cls: type[SplitMethod]) -> None:
    with two_devices() as devices, pytest.raises(ConfigError, match=f"model='{cls.__name__}' is not allowed: one dev"):
        trained(cls, devices)


def test_the_devices_refuse_what_cuda_does() -> None:
    with two_devices() as devices:
        here, there, plain = torch.ones(3, device=FIRST), torch.ones(3, device=SECOND), torch.ones(3)
        for one, other in ((here, there), (here, plain)):
            with pytest.raises(Apart):
                one + other
            with pytest.raises(Apart):
                torch.stack([one, other])
        assert (here * torch.tensor(2.0)).tolist() == [2.0] * 3
        assert devices.crossed(FIRST, SECOND) == 0
        assert here.to(SECOND).device == SECOND
        there.copy_(here)
        assert devices.crossed(FIRST, SECOND) == 24
        half = nn.Linear(3, 2).to(FIRST)
        half(here.to(SECOND).to(FIRST)).sum().backward()
        assert half.weight.grad is not None
        assert half.weight.grad.device == FIRST


@pytest.mark.parametrize("cls", [PerFedAvg, Reptile, CFL])
def test_uncut_variants_do_the_same_on_two_devices(cls: type[SplitMethod]) -> None:
    on_one, _ = trained(cls, **rich_of(cls))
    with two_devices() as devices:
        on_two, _ = trained(cls, devices, **rich_of(cls))
    assert differing(whole(on_one), whole(on_two)) == []
