"""Privacy in whole runs: which halves it acts on, where it is plain averaging, resume, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_sfl.core.aggregators import Median
from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.effort import Plateau
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.fed_cbs import FedCBS
from lightning_sfl.core.label_selection import LabelAware
from lightning_sfl.core.oort import Oort
from lightning_sfl.core.power_of_choice import PowerOfChoice
from lightning_sfl.core.privacy import CentralDP, GradientMasking, LocalDP, Privacy
from lightning_sfl.core.privacy.base import clipped
from lightning_sfl.core.staleness import Polynomial
from lightning_sfl.methods import (
    CA2FL,
    CFL,
    GAS,
    IFCA,
    SFL,
    SFLV1,
    Centralized,
    FedAsync,
    FedAvg,
    FedBuff,
    FedSGD,
    HoloGrad,
    MiniBatchSFL,
    MultiSFL,
    ScaffoldSFL,
    SplitLearning,
    SplitMethod,
)
from lightning_sfl.placement.choice import why_not_roles, why_not_sharded
from tests.every_method import METHODS
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, whole

SIZES = (5, 4, 9, 2, 6)
INF = float("inf")
UNGUARDED = (SplitLearning, Centralized, HoloGrad, MultiSFL, FedAsync, CA2FL, IFCA, CFL, ScaffoldSFL)
GUARDED = [method for method in METHODS if method not in UNGUARDED]


def run(cls: type[SplitMethod], privacy: Privacy | None = None, rounds: int = 2, **options: Any) -> dict[str, Tensor]:
    return whole(fit(build(cls, batch_size=4, privacy=privacy, **options), rows(SIZES), rounds))


@pytest.mark.parametrize("cls", GUARDED)
def test_limits_are_the_plain_and_the_uniform_average(cls: type[SplitMethod]) -> None:
    plain = run(cls)
    for nothing in (LocalDP(INF, 0.0), LocalDP(1e9, 0.0), GradientMasking(1.0)):
        assert differing(run(cls, nothing), plain) == []
    uniform = run(cls, weighting="uniform")
    assert furthest(run(cls, CentralDP(INF, 0.0), weighting="uniform"), uniform) < 1e-6
    assert furthest(run(cls, LocalDP(0.1, 0.01)), plain) > 1e-4


@pytest.mark.parametrize("cls", [SFL, SFLV1, FedAvg])
def test_a_mean_of_clipped_updates_over_all_that_is_merged(cls: type[SplitMethod]) -> None:
    """A client's two halves are one update; without copies the server half is not merged, and not clipped."""
    ends: list[list[dict[str, Tensor]]] = []

    class Seen(cls):  # type: ignore[misc, valid-type]
        name = cls.name

        def put_together(self, states: Any, *others: Any) -> None:
            ends.append([{name: tensor.clone() for name, tensor in state.items()} for state in states])
            super().put_together(states, *others)

    method = build(Seen, batch_size=4, weighting="uniform", privacy=CentralDP(0.05, 0.0))
    start = {}

    class Start(Recorder):
        def on_round_start(self, module: SplitMethod, event: Any) -> None:
            start.update({name: t.clone() for name, t in module.merged_halves().state_dict().items()})

    after = fit(method, rows(SIZES), 1, [Start()]).merged_halves().state_dict()
    moves = [torch.cat([(end[name] - start[name]).flatten() for name in start]) for end in ends[0]]
    assert max(float(move.norm()) for move in moves) > 0.05
    wanted = torch.stack([clipped(move, 0.05) for move in moves]).mean(dim=0)
    torch.testing.assert_close(torch.cat([(after[name] - start[name]).flatten() for name in start]), wanted)


def test_where_the_server_trains_copies_the_client_hides_its_own_half_only() -> None:
    plain, noised = run(SFLV1, rounds=1), run(SFLV1, LocalDP(10.0, 0.1), rounds=1)
    assert differing(noised, plain) == ["fc1.bias", "fc1.weight"]
    assert {"fc1.bias", "head.weight"} <= {*differing(run(FedAvg, LocalDP(10.0, 0.1), rounds=1), plain)}


def test_tied_and_frozen_weights() -> None:
    """Of a tensor with two names no name brings the unhidden one; what is not trained is not noised."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            net = network()
            self.first, self.again, self.frozen = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.again.weight = self.first.weight
            self.frozen.requires_grad_(False)
            self.body = net

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.frozen(self.again(self.first(x))))

    torch.manual_seed(0)
    net = Tied()
    before = net.frozen.weight.clone()
    options: dict[str, Any] = {"batch_size": 4, "weighting": "uniform"}
    still = fit(build(FedAvg, net, "body.relu1", privacy=CentralDP(1e-9, 0.0), **options), rows(SIZES), 2)
    for name, tensor in whole(still).items():
        torch.testing.assert_close(tensor, net.state_dict()[name], rtol=0, atol=1e-7)
    noised = whole(fit(build(FedAvg, net, "body.relu1", privacy=CentralDP(1.0, 5.0, None), **options), rows(SIZES), 1))
    assert torch.equal(noised["frozen.weight"], before)
    assert torch.equal(noised["first.weight"], noised["again.weight"])


def test_bytes_of_masked_updates() -> None:
    for cls, privacy, wanted in (
        (SFL, GradientMasking(0.5), 5 * 28 * 8),
        (FedAvg, GradientMasking(0.2, "random"), 5 * 30 * 4),
        (FedSGD, GradientMasking(0.2, "random"), 5 * 30 * 4),
        (SFLV1, GradientMasking(0.25, "random"), 5 * 14 * 4),
        (FedAvg, LocalDP(1.0, 1.0), 5 * 151 * 4),
    ):
        recorder = Recorder()
        fit(build(cls, privacy=privacy), rows(SIZES), 1, [recorder])
        kind = "gradients" if cls is FedSGD else "weights"
        assert recorder.traffic_bytes[0][kind, "up"] == wanted, cls


# --- what is promised of every run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "make"),
    [
        (SFL, lambda: CentralDP(0.1, 0.1, adaptive=True)),
        (FedAvg, lambda: CentralDP(0.1, 0.1, None, adaptive=True)),
        (GAS, lambda: LocalDP(1.0, 0.1)),
        (SFL, lambda: GradientMasking(0.2, error_feedback=True)),
        (FedSGD, lambda: GradientMasking(0.2, "random", error_feedback=True)),
    ],
)
def test_it_repeats_resumes_and_is_not_changed_by_watching(
    cls: type[SplitMethod], make: Callable[[], Privacy], tmp_path: Path
) -> None:
    def trained(watcher: Recorder, resume: Path | None = None) -> tuple[dict[str, Any], dict[str, float]]:
        options = {"participants": 3, "batch_size": 4, "weighting": "uniform", "client_optimizer": sgd(0.1, 0.9)}
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        method = build(cls, network(0.2), privacy=make(), **options)
        fit(method, rows(SIZES), 3, [keep, watcher], resume, enable_checkpointing=True)
        return whole(method), method.privacy_scalars()

    wanted, told = trained(Recorder())
    again, told_again = trained(Recorder(), tmp_path / "epoch=0.ckpt")
    assert differing(again, wanted) == []
    assert told_again == told
    for path in tmp_path.iterdir():
        path.unlink()
    assert differing(trained(Recorder())[0], wanted) == []


def test_a_run_goes_on_with_the_same_privacy_only(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(build(FedAvg, privacy=LocalDP(1.0, 0.1)), rows(SIZES), 1, [keep], enable_checkpointing=True)
    with pytest.raises(Exception, match="the checkpoint has privacy='LocalDP', this run privacy=None"):
        fit(build(FedAvg), rows(SIZES), 2, resume=tmp_path / "epoch=0.ckpt")


# --- the account ------------------------------------------------------------------------------------------------------


def test_an_epsilon_is_told_where_all_that_is_released_is_noised() -> None:
    pytest.importorskip("opacus")
    from lightning_sfl.core.privacy.account import Account

    def method(cls: type[SplitMethod], **options: Any) -> SplitMethod:
        privacy = CentralDP(0.1, 2.0)
        return fit(build(cls, participants=2, weighting="uniform", privacy=privacy, **options), rows(SIZES), 3)

    account = Account()
    for _ in range(3):
        account.add(2.0, 2 / 5)
    for cls in (FedAvg, FedSGD, SFLV1):
        found = method(cls)
        assert found.privacy_scalars() == {"privacy/epsilon": pytest.approx(account.spent(1e-5))}
        assert "epsilon at delta 1e-05" in found.said_of_privacy()[0]
    for cls in (SFL, MiniBatchSFL, GAS):
        found = method(cls)
        assert found.privacy_scalars() == {}
        assert "no epsilon, as the server half learns from smashed data without noise" in found.said_of_privacy()[0]
    assert "no epsilon, as clients come and go on its own clock" in method(FedBuff).said_of_privacy()[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": Oort()}, "no epsilon, as Oort goes by training losses"),
        ({"selection": PowerOfChoice(4)}, "no epsilon, as PowerOfChoice goes by training losses"),
        ({"selection": FedCBS()}, "no epsilon, as FedCBS goes by clients' rows"),
        ({"selection": LabelAware()}, "no epsilon, as LabelAware goes by clients' rows"),
        ({"attendance": Attendance(overcommit=1.5)}, "no epsilon, as who is done in time goes by how many rows"),
        ({"attendance": Attendance(deadline_s=1e3)}, "no epsilon, as who is done in time goes by how many rows"),
        (
            {"attendance": Attendance([0.9] * 4 + [1.0])},
            "no epsilon, as attendance.availability is not the same for all",
        ),
        ({"effort": Plateau()}, "no epsilon, as Plateau goes by training results"),
    ],
    ids=lambda one: "" if isinstance(one, str) else next(iter(one)),
)
def test_no_epsilon_is_told_where_clients_data_say_who_or_what_is_merged(options: dict[str, Any], words: str) -> None:
    """One client's data would change more of the mean than its own update, which is all that is clipped."""
    made: dict[str, Any] = {"participants": 2, "batch_size": 2, "weighting": "uniform", **options}
    found = fit(build(FedAvg, privacy=CentralDP(0.1, 2.0), **made), rows((20,) * 5), 1)
    assert found.privacy_scalars() == {}
    assert words in found.said_of_privacy()[0]


def test_an_epsilon_is_told_where_clients_stay_away_by_chance() -> None:
    pytest.importorskip("opacus")
    options: dict[str, Any] = {"participants": 3, "weighting": "uniform"}
    told = []
    for chance in (0.9, [0.9] * 5):
        away = Attendance(availability=chance)
        found = fit(build(FedAvg, privacy=CentralDP(0.1, 2.0), attendance=away, **options), rows(SIZES), 2)
        told.append(found.privacy_scalars()["privacy/epsilon"])
    assert told[0] == told[1] > 0


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "privacy", "options", "words"),
    [
        (SplitLearning, LocalDP(1.0, 1.0), {}, "privacy='LocalDP' is not allowed: null in SplitLearning, as"),
        (Centralized, GradientMasking(), {}, "null in Centralized, as there are no clients"),
        (HoloGrad, GradientMasking(), {}, "null in HoloGrad, as `robust` says"),
        (FedAsync, LocalDP(1.0, 1.0), {}, "null in FedAsync, as what clients hand in is mixed in one by one"),
        (IFCA, LocalDP(1.0, 1.0), {}, "null in IFCA, as a cluster may be a single client"),
        (CFL, LocalDP(1.0, 1.0), {}, "null in CFL, as a cluster may be a single client"),
        (
            FedBuff, LocalDP(1.0, 1.0), {"staleness": Polynomial()},
            "staleness='Polynomial' is not allowed: null with privacy LocalDP: updates are hidden before it is known",
        ),
        (MultiSFL, CentralDP(1.0, 1.0), {}, "null in MultiSFL, as branches go on from client to client as they are"),
        (ScaffoldSFL, LocalDP(1.0, 1.0), {}, "null in ScaffoldSFL, as clients send what their control variates"),
        (SFL, CentralDP(1.0, 1.0), {}, "weighting='samples' is not allowed: uniform with privacy CentralDP, as"),
        (
            SFL, CentralDP(1.0, 1.0), {"weighting": "uniform", "aggregator": Median()},
            "aggregator='Median' is not allowed: WeightedAverage with privacy CentralDP, which forms the mean itself",
        ),
        (SFL, LocalDP(1.0, 1.0), {"norm": True}, "privacy='LocalDP' is not allowed: null with buffers such as bn1"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_what_has_no_meaning_is_refused(
    cls: type[SplitMethod], privacy: Privacy, options: dict[str, Any], words: str
) -> None:
    recorder, options = Recorder(), dict(options)
    with pytest.raises(ConfigError, match=re.escape(words)) as refusal:
        net = network(norm=options.pop("norm", False))
        fit(build(cls, net, "relu1", privacy=privacy, **options), rows(SIZES), callbacks=[recorder])
    assert "\n" not in str(refusal.value)
    assert recorder.events == []


def test_statistics_that_only_travel_along_may_stay() -> None:
    """Masking promises nothing of them."""
    assert all(t.isfinite().all() for t in run(SFL, GradientMasking(0.2)).values())
    fit(build(SFL, network(norm=True), privacy=GradientMasking(0.2)), rows(SIZES))


def test_a_robust_rule_sees_the_noised_updates() -> None:
    assert furthest(run(FedAvg, LocalDP(1.0, 0.1), aggregator=Median()), run(FedAvg, aggregator=Median())) > 1e-3


def test_several_processes() -> None:
    """Updates are merged by all processes alike, so parts of them would not do; nor would client halves alone."""
    for cls, privacy in ((SFLV1, CentralDP(1.0, 1.0, None)), (FedAvg, LocalDP(1.0, 1.0))):
        method = build(cls, weighting="uniform", privacy=privacy)
        method.prepare(rows(SIZES), "fit")
        assert f"privacy {type(privacy).__name__} acts on" in why_not_sharded(method, rows(SIZES).example())
        assert bool(why_not_roles(method)) == (cls is SFLV1)
