"""Closed forms of differential privacy and gradient masking on single updates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.privacy import CentralDP, GradientMasking, LocalDP
from lightning_sfl.core.privacy.base import Moment, Setting, clipped
from lightning_sfl.core.privacy.central import noise_with_count

NOW = Moment(0, 0)
CLOSED = Setting(10, 0.5, "this is a test")


def updates(count: int, numbers: int = 40, seed: int = 0) -> list[Tensor]:
    return [*torch.from_numpy(np.random.default_rng(seed).normal(size=(count, numbers))).float()]


def mean_of(rule: CentralDP, vectors: list[Tensor], round: int = 0) -> Tensor:
    clients = range(len(vectors))
    return rule.average(vectors, [1.0] * len(vectors), clients, [Moment(0, round)] * len(vectors))


def ready(rule: CentralDP, participants: int = 10) -> CentralDP:
    rule.prepare(Setting(participants, 0.5, "this is a test"))
    return rule


# --- clipping ---------------------------------------------------------------------------------------------------------


def test_clipping_keeps_the_direction_and_leaves_short_and_zero_updates_alone() -> None:
    torch.testing.assert_close(clipped(torch.tensor([3.0, 4.0]), 2.5), torch.tensor([1.5, 2.0]))
    for short in (torch.tensor([0.3, 0.4]), torch.zeros(2)):
        assert clipped(short, 1.0) is short


# --- central ----------------------------------------------------------------------------------------------------------


def test_without_noise_and_bound_it_is_the_plain_mean() -> None:
    vectors = updates(7)
    found = mean_of(ready(CentralDP(math.inf, 0.0)), vectors)
    torch.testing.assert_close(found, torch.stack(vectors).mean(dim=0), rtol=0, atol=1e-7)


def test_the_noise_on_the_mean_has_std_z_s_over_m() -> None:
    """z = 1, S = 2, m = 10: 0.2."""
    zeros = [torch.zeros(40_000)] * 10
    found = mean_of(ready(CentralDP(2.0, 1.0)), zeros)
    assert float(found.std()) == pytest.approx(0.2, rel=0.02)
    assert abs(float(found.mean())) < 0.2 * 4 / 200
    assert not torch.equal(found, mean_of(ready(CentralDP(2.0, 1.0)), zeros, round=1))
    assert torch.equal(found, mean_of(ready(CentralDP(2.0, 1.0)), zeros))


def test_one_client_moves_the_mean_by_no_more_than_its_share() -> None:
    for seed in range(20):
        vectors, rule = updates(8, seed=seed), ready(CentralDP(0.7, 0.0))
        other = [*vectors[:-1], -100 * vectors[0]]
        moved = float((mean_of(rule, vectors) - mean_of(rule, other)).norm())
        assert moved <= 2 * 0.7 / 8 + 1e-6
    opposite = [torch.tensor([9.0, 0.0])] * 4, [*[torch.tensor([9.0, 0.0])] * 3, torch.tensor([-9.0, 0.0])]
    apart = mean_of(rule, opposite[0]) - mean_of(rule, opposite[1])
    assert float(apart.norm()) == pytest.approx(2 * 0.7 / 4)  # the bound is reached


# --- the adaptive bound -----------------------------------------------------------------------------------------------


def test_the_bound_follows_the_share_of_updates_within_it() -> None:
    """All within and no noise: S exp(-0.2 (1 - 0.5)) = S exp(-0.1); none within: S exp(0.1)."""
    for vectors, sign in (([torch.tensor([0.5])] * 6, -1), ([torch.tensor([5.0])] * 6, 1)):
        rule = ready(CentralDP(1.0, 0.0, adaptive=True))
        mean_of(rule, vectors)
        assert rule.clip == pytest.approx(math.exp(sign * 0.1))


def test_the_bound_finds_the_median_norm() -> None:
    rule = ready(CentralDP(0.1, 0.0, adaptive=True))
    vectors = [torch.tensor([length]) for length in (1.0, 2.0, 3.0, 4.0)]
    for round in range(60):
        mean_of(rule, vectors, round)
    assert 1.8 < rule.clip < 3.3


def test_the_noised_count_costs_the_mean_some_of_its_noise() -> None:
    """z_D = (z^-2 - (2 sigma_b)^-2)^(-1/2), and so z^-2 is the sum of both."""
    assert noise_with_count(0.6, 0.5) == pytest.approx((0.6**-2 - 1) ** -0.5)
    rule = ready(CentralDP(2.0, 0.6, adaptive=True))  # sigma_b = 10 / 20
    assert rule.count_noise == 0.5
    found = mean_of(rule, [torch.zeros(40_000)] * 10)
    assert float(found.std()) == pytest.approx(0.75 * 2.0 / 10, rel=0.02)
    with pytest.raises(ConfigError, match=r"privacy.noise_multiplier=1.0 is not allowed: below 2 count_noise = 1, as"):
        ready(CentralDP(2.0, 1.0, adaptive=True))


# --- local ------------------------------------------------------------------------------------------------------------


def test_local_noise_is_each_clients_own_and_has_std_z_s() -> None:
    rule, zero = LocalDP(3.0, 0.1), torch.zeros(40_000)
    one, other = rule.hide(zero, 0, NOW), rule.hide(zero, 1, NOW)
    assert float(one.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(torch.nn.functional.cosine_similarity(one, other, dim=0))) < 0.03
    again = [rule.hide(zero, 0, moment) for moment in (NOW, Moment(0, 1), Moment(1, 0), Moment(0, 0, 1))]
    assert [torch.equal(one, each) for each in again] == [True, False, False, False]
    update = updates(1)[0]
    torch.testing.assert_close(LocalDP(0.5, 0.0).hide(update, 0, NOW), update * 0.5 / update.norm())


def test_local_noise_for_an_epsilon_is_that_of_the_gaussian_mechanism() -> None:
    """Two updates of norm at most S are 2 S apart at most."""
    assert LocalDP(1.5, epsilon=0.5, delta=1e-5).std == pytest.approx(2 * 1.5 * math.sqrt(2 * math.log(1.25e5)) / 0.5)


# --- masking ----------------------------------------------------------------------------------------------------------


def test_a_mask_of_everything_is_the_update_itself() -> None:
    update = updates(1)[0]
    for way in ("random", "topk", "drop_topk"):
        assert GradientMasking(1.0, way).hide(update, 0, NOW) is update


def test_which_numbers_are_sent() -> None:
    update = torch.tensor([1.0, -5.0, 3.0, -2.0])
    assert GradientMasking(0.5, "topk").hide(update, 0, NOW).tolist() == [0, -5, 3, 0]
    assert GradientMasking(0.5, "drop_topk").hide(update, 0, NOW).tolist() == [1, 0, 0, -2]
    drawn = [GradientMasking(0.5, "random").hide(update, 0, Moment(0, round)) for round in range(100)]
    assert {int(each.count_nonzero()) for each in drawn} == {2}
    assert len({tuple(each.tolist()) for each in drawn}) == 6


def test_a_scaled_random_mask_is_right_in_the_mean() -> None:
    update, rule = updates(1, 20)[0], GradientMasking(0.3, "random", scale=True)
    mean = torch.stack([rule.hide(update, 0, Moment(0, round)) for round in range(8000)]).mean(dim=0)
    torch.testing.assert_close(mean, update, rtol=0, atol=0.12)  # 5 standard errors of the largest number


@pytest.mark.parametrize("way", ["topk", "random"])
def test_with_feedback_what_is_sent_and_what_is_left_are_all_there_was(way: str) -> None:
    rule = GradientMasking(0.2, way, error_feedback=True)
    rule.prepare(CLOSED)
    for client in (3, 8):
        series = updates(9, seed=client)
        sent = torch.stack([rule.hide(each, client, Moment(0, i)) for i, each in enumerate(series)]).sum(dim=0)
        torch.testing.assert_close(sent + rule.residuals[client], torch.stack(series).sum(dim=0))
    assert float(rule.residuals[3].norm()) > 0.1


def test_masks_are_counted_in_bytes() -> None:
    assert GradientMasking(0.1, "topk").upload_bytes(1000, 4, 0, [0], NOW) == 100 * 8
    assert GradientMasking(0.1, "random").upload_bytes(1000, 4, 0, [0], NOW) == 100 * 4
    assert GradientMasking(0.9, "topk").upload_bytes(1000, 4, 0, [0], NOW) == 4000  # as it is, being shorter


# --- the account ------------------------------------------------------------------------------------------------------


def test_the_account_is_that_of_opacus_and_adds_up() -> None:
    accountants = pytest.importorskip("opacus.accountants")
    from lightning_sfl.core.privacy.account import ORDERS, Account

    own, known = Account(), accountants.RDPAccountant()
    for noise, rate, rounds in ((1.1, 0.1, 30), (0.8, 0.5, 5), (1.1, 0.1, 10)):
        for _ in range(rounds):
            own.add(noise, rate)
            known.step(noise_multiplier=noise, sample_rate=rate)
    assert own.spent(1e-5) == pytest.approx(known.get_epsilon(1e-5, alphas=[*ORDERS]), rel=1e-9)
    resumed = Account()
    resumed.load(own.state())
    assert resumed.spent(1e-5) == own.spent(1e-5) < own.spent(1e-6)


def test_without_sampling_the_account_has_a_closed_form() -> None:
    """RDP of T Gaussian releases at order a is T a / (2 z^2); the conversion is Canonne, Kamath and Steinke's."""
    pytest.importorskip("opacus")
    from lightning_sfl.core.privacy.account import ORDERS, Account

    account, rounds, noise, delta = Account(), 20, 4.0, 1e-5
    for _ in range(rounds):
        account.add(noise, 1.0)
    wanted = min(
        rounds * a / (2 * noise**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in ORDERS
    )
    assert account.spent(delta) == pytest.approx(wanted, rel=1e-9)
    account.add(0.0, 1.0)
    assert account.spent(delta) == math.inf
