"""DP-SGD in local training: gradients row by row against Opacus and by hand, limits, resume, the account, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_sfl.core import events
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.privacy.base import clipped
from lightning_sfl.core.privacy.sample import SampleDP
from lightning_sfl.methods import GAS, IFCA, SFL, Centralized, FedAvg, FedSGD, HoloGrad, PerFedAvg, SplitMethod
from tests.every_method import METHODS
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, whole

SIZES = (5, 4, 9, 2)


def run(cls: type[SplitMethod], dp: SampleDP | None, rounds: int = 2, **options: Any) -> dict[str, Tensor]:
    data = rows(SIZES, dtype=torch.float64)
    method = build(cls, network(dtype=torch.float64), batch_size=4, sample_dp=dp, **options)
    return whole(fit(method, data, rounds))


@pytest.mark.parametrize("cls", [method for method in METHODS if method not in (HoloGrad, PerFedAvg, IFCA)])
def test_without_noise_and_bound_gradients_are_the_plain_ones(cls: type[SplitMethod]) -> None:
    plain = run(cls, None)
    assert furthest(run(cls, SampleDP(math.inf, 0.0)), plain) < 1e-12
    assert furthest(run(cls, SampleDP(0.05, 0.0)), plain) > 1e-4


class Gradients(Recorder):
    """The gradients of the first step of each client, and what it was taken at."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, Tensor] = {}

    def on_client_backward(self, module: SplitMethod, event: events.ClientBackward) -> None:
        for turn in event.turns:
            halves = [turn.client_half, turn.server_half] if module.whole_on_client else [turn.client_half]
            self.of.setdefault(turn.client_id, flat([p.grad for half in halves for p in half.parameters()]))


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def row_gradients(net: nn.Module, x: Tensor, y: Tensor, names: list[str]) -> list[Tensor]:
    parameters = [p for name, p in net.named_parameters() if name.split(".")[0] in names]
    losses = nn.functional.cross_entropy(net(x), y, reduction="none")
    return [flat(torch.autograd.grad(loss, parameters, retain_graph=True)) for loss in losses]


@pytest.mark.parametrize(("cls", "names"), [(SFL, ["fc1"]), (FedAvg, ["fc1", "fc2", "head"])])
def test_each_row_is_bounded_for_itself(cls: type[SplitMethod], names: list[str]) -> None:
    """Client 0 takes part first, so that the server half it meets is the one there was."""
    seen, data = Gradients(), rows((5,), dtype=torch.float64)
    fit(build(cls, network(dtype=torch.float64), batch_size=None, sample_dp=SampleDP(0.3, 0.0)), data, 1, [seen])
    found = row_gradients(network(dtype=torch.float64), data.population.x, data.population.y, names)
    assert len({float(each.norm()) > 0.3 for each in found}) == 2 or cls is FedAvg
    wanted = torch.stack([clipped(each, 0.3) for each in found]).mean(dim=0)
    torch.testing.assert_close(seen.of[0], wanted, rtol=1e-10, atol=1e-12)


def test_row_gradients_are_those_of_opacus() -> None:
    opacus = pytest.importorskip("opacus")
    data, net = rows((6,), dtype=torch.float64), network(dtype=torch.float64)
    by_hand = row_gradients(net, data.population.x, data.population.y, ["fc1", "fc2", "head"])
    wrapped = opacus.GradSampleModule(network(dtype=torch.float64), loss_reduction="mean")
    nn.functional.cross_entropy(wrapped(data.population.x.requires_grad_()), data.population.y).backward()
    theirs = torch.cat([p.grad_sample.flatten(1) for p in wrapped.parameters()], dim=1)
    torch.testing.assert_close(torch.stack(by_hand), theirs)


def test_the_noise_on_the_mean_has_std_z_s_over_b() -> None:
    wide = nn.Linear(3000, 5)
    key = (0, "noise", 0, 0, 0)
    SampleDP(2.0, 1.5).descend([], [*wide.parameters()], 1.0, 10, key)
    assert wide.weight.grad is not None
    assert float(wide.weight.grad.std()) == pytest.approx(1.5 * 2.0 / 10, rel=0.03)
    before = wide.weight.grad
    SampleDP(2.0, 1.5).descend([], [*wide.parameters()], 1.0, 10, (0, "noise", 0, 0, 1))
    assert not torch.equal(before, wide.weight.grad)


@pytest.mark.parametrize("cls", [SFL, FedAvg, GAS])
def test_it_repeats_and_resumes(cls: type[SplitMethod], tmp_path: Path) -> None:
    def trained(resume: Path | None = None) -> tuple[dict[str, Any], dict[str, float]]:
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        method = build(cls, network(0.2), participants=3, batch_size=4, sample_dp=SampleDP(0.5, 0.5, None))
        fit(method, rows(SIZES), 3, [keep], resume, enable_checkpointing=True)
        return whole(method), method.sample_accounts.state()

    wanted = trained()
    again = trained(tmp_path / "epoch=0.ckpt")
    assert differing(again[0], wanted[0]) == []
    assert again[1] == wanted[1]


def test_the_account_is_that_of_the_worst_client() -> None:
    """Client 2 of 9 rows: 3 steps a round, two of 4 rows and one of 1."""
    pytest.importorskip("opacus")
    from lightning_sfl.core.privacy.account import Account

    method = fit(build(FedAvg, batch_size=4, sample_dp=SampleDP(0.5, 2.0)), rows((9, 8)), 2)
    accounts = []
    for rates in ((4 / 9, 4 / 9, 1 / 9), (1 / 2, 1 / 2)):
        account = Account()
        for rate in rates * 2:
            account.add(2.0, rate)
        accounts.append(account.spent(1e-5))
    assert method.privacy_scalars() == {"privacy/sample_epsilon": pytest.approx(max(accounts))}
    pooled = fit(build(Centralized, batch_size=4, sample_dp=SampleDP(0.5, 2.0)), rows((9, 8)), 1)
    assert len(pooled.sample_accounts.of) == 1
    assert pooled.sample_accounts.state()[0][0] == [4, 2.0, 4 / 17]
    split = fit(build(SFL, sample_dp=SampleDP(0.5, 2.0)), rows())
    assert split.privacy_scalars() == {}
    assert "no epsilon, as the server half learns from smashed data" in split.said_of_privacy()[0]


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (HoloGrad, {}, "sample_dp='given' is not allowed: null in HoloGrad, as clients send scalars"),
        (PerFedAvg, {}, "sample_dp='given' is not allowed: null in PerFedAvg, as the step of adaptation"),
        (IFCA, {}, "sample_dp='given' is not allowed: null in IFCA, as clients choose by losses"),
        (SFL, {"net": network(norm=True)}, "sample_dp='given' is not allowed: null with BatchNorm"),
        (SFL, {"client_engine": "stacked"}, "client_engine='stacked' is not allowed: loop with sample_dp"),
        (SFL, {"sample_dp": SampleDP(0.0, 1.0, None)}, "sample_dp.clip=0.0 is not allowed"),
        (SFL, {"sample_dp": SampleDP(1.0, -1.0, None)}, "sample_dp.noise_multiplier=-1.0 is not allowed"),
        (FedSGD, {"sample_dp": SampleDP(1.0, 1.0, 2.0)}, "sample_dp.delta=2.0 is not allowed"),
    ],
    ids=lambda one: one[:40] if isinstance(one, str) else "",
)
def test_what_has_no_meaning_is_refused(cls: type[SplitMethod], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fit(build(cls, **{"sample_dp": SampleDP(1.0, 1.0, None), **options}), rows(SIZES))
