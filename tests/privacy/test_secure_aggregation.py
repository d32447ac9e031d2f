"""Secure aggregation: keys, shares and masks by their laws, the sum within its bound, drop-outs, bytes, whole runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.privacy import SecureAggregation
from lightning_sfl.core.privacy.base import Moment, Setting
from lightning_sfl.core.privacy.masked_sum import MaskedSum
from lightning_sfl.core.privacy.secrets import FIELD, GENERATOR, GROUP, agreed, mask, public_key, put_back, share_out
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.selection import FixedSchedule
from lightning_sfl.methods import GAS, SFL, SFLV1, FedAvg, FedSGD, SplitMethod
from tests.tiny import Recorder, build, differing, fit, furthest, rows, whole

SIZES = (5, 4, 9, 2, 6)


def session(count: int = 5, threshold: int = 3, numbers: int = 1000) -> MaskedSum:
    return MaskedSum([stream(0, "keys", client=client) for client in range(count)], threshold, numbers)


def vectors(count: int = 5, numbers: int = 1000) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 2**22, numbers).astype(np.uint32) for i in range(count)]


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_the_group_is_that_of_a_safe_prime() -> None:
    """RFC 3526, group 14: p = 2^2048 - 2^1984 - 1 + 2^64 ([2^1918 pi] + 124476), whose ends are 64 ones each."""
    assert GROUP.bit_length() == 2048
    assert GROUP >> 1984 == GROUP & (2**64 - 1) == 2**64 - 1
    for prime in (GROUP, (GROUP - 1) // 2):
        assert pow(3, prime - 1, prime) == 1
    assert pow(GENERATOR, (GROUP - 1) // 2, GROUP) == 1  # of prime order


def test_two_clients_agree_and_a_third_does_not() -> None:
    one, other, third = 3**100, 5**70, 7**60
    assert agreed(one, public_key(other)) == agreed(other, public_key(one)) != agreed(third, public_key(one))
    assert not np.array_equal(mask(1, 50), mask(2, 50))
    assert np.array_equal(mask(1, 50), mask(1, 50))


def test_a_threshold_of_shares_gives_the_secret_and_fewer_do_not() -> None:
    secret, rng = 2**255 + 12345, np.random.default_rng(0)
    shares = share_out(secret, 6, 4, rng)
    for _ in range(10):
        chosen = rng.permutation(6)
        assert put_back({int(i) + 1: shares[i] for i in chosen[:4]}) == secret
        assert put_back({int(i) + 1: shares[i] for i in chosen[:5]}) == secret
        assert put_back({int(i) + 1: shares[i] for i in chosen[:3]}) != secret
    assert max(shares) < FIELD


# --- masks ------------------------------------------------------------------------------------------------------------


def test_the_masks_of_all_pairs_cancel_exactly() -> None:
    made = session()
    total = np.zeros(1000, dtype=np.uint32)
    for client in range(5):
        total += made.pair_masks(client)
    assert not total.any()
    assert made.pair_masks(0).any()


def test_a_single_masked_vector_says_nothing_and_the_sum_is_exact() -> None:
    made, plain = session(numbers=40_000), vectors(numbers=40_000)
    sent = {i: made.masked(i, vector) for i, vector in enumerate(plain)}
    for i, vector in enumerate(plain):
        assert np.mean(sent[i] == vector) < 1e-3
        shares = sent[i] / 2**32
        assert abs(shares.mean() - 0.5) < 0.01  # uniform, where what is hidden lies below 2^-10
        assert abs(shares.std() - 12**-0.5) < 0.01
        assert abs(np.corrcoef(shares, vector)[0, 1]) < 0.025
    assert np.array_equal(made.unmasked(sent), sum(plain))


@pytest.mark.parametrize("gone", [(2,), (0, 4)])
def test_what_is_left_is_summed_exactly_when_clients_drop_out(gone: tuple[int, ...]) -> None:
    made, plain = session(), vectors()
    sent = {i: made.masked(i, plain[i]) for i in range(5) if i not in gone}
    assert np.array_equal(made.unmasked(sent), sum(plain[i] for i in sent))
    raw = sum(sent.values()).astype(np.uint32)
    assert not np.array_equal(raw, made.unmasked(sent))  # the masks of those who are gone did stand in it


# --- the mean ---------------------------------------------------------------------------------------------------------


def ready(participants: int = 5, uniform: bool = False, **options: Any) -> SecureAggregation:
    rule = SecureAggregation(**options)
    rule.prepare(Setting(participants, 1.0, "", uniform))
    return rule


def test_the_sum_is_within_its_bound() -> None:
    """omega_k = n_k / 1000; the weighted sum is at most m 16 / 2^22 off, as is the sum of weights by m / 2^22."""
    updates = [*torch.from_numpy(np.random.default_rng(1).normal(size=(5, 500)))]
    weights = [400.0, 900.0, 50.0, 1000.0, 700.0]
    rule = ready()
    found = rule.average(updates, weights, range(5), [Moment(0, 0)] * 5)
    omega = torch.tensor(weights, dtype=torch.float64) / 1000
    total = float(omega.sum())
    bound = 5 * 16 / 2**22
    apart = (found * total - (omega[:, None] * torch.stack(updates)).sum(dim=0)).abs().max()
    assert 0 < float(apart) < bound + 5 / 2**22 * float(found.abs().max())


def test_all_count_alike_where_weights_are_uniform_and_rounding_is_right_in_the_mean() -> None:
    updates = [torch.full((20_000,), value, dtype=torch.float64) for value in (0.3, -0.1, 0.2)]
    rule = ready(3, True, levels=64)
    found = rule.average(updates, [1.0] * 3, range(3), [Moment(0, 0)] * 3)
    assert float(found.std()) > 0.01
    assert float(found.mean()) == pytest.approx(3 * (0.4 / 3) / (3 * 63 / 64), abs=0.002)  # omega of 1: the top level


def test_numbers_out_of_range_are_cut_and_counted() -> None:
    rule = ready(2, True, value_range=1.0)
    found = rule.average([torch.tensor([5.0, 0.5])] * 2, [1.0] * 2, range(2), [Moment(0, 0)] * 2)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5]), rtol=0, atol=1e-5)
    assert rule.scalars()["privacy/cut_values"] == 2


# --- in the loop ------------------------------------------------------------------------------------------------------


def run(cls: type[SplitMethod], rounds: int = 2, **options: Any) -> dict[str, torch.Tensor]:
    return whole(fit(build(cls, batch_size=4, **options), rows(SIZES), rounds))


@pytest.mark.parametrize("cls", [SFL, FedAvg, FedSGD, SFLV1])
def test_it_is_the_weighted_average_up_to_quantisation(cls: type[SplitMethod]) -> None:
    for weighting in ("samples", "uniform"):
        rule = SecureAggregation(max_weight=9)
        assert 0 < furthest(run(cls, privacy=rule, weighting=weighting), run(cls, weighting=weighting)) < 2e-4


class Handed(Recorder):
    """Keeps what the merge starts from."""

    def on_round_start(self, module: SplitMethod, event: Any) -> None:
        self.start = {name: tensor.clone() for name, tensor in event.client_half.state_dict().items()}


def test_drop_outs_are_left_out_of_the_mean() -> None:
    seen, rule = Handed(), SecureAggregation(drop_out=0.3, threshold=2)
    method = fit(build(SFL, batch_size=4, weighting="uniform", privacy=rule), rows(SIZES), 1, [seen])
    stays = [rule.stays(client, Moment(0, 0)) for client in range(5)]
    assert method.privacy_scalars()["privacy/dropped"] == stays.count(False) > 0
    for name, tensor in method.client_half.state_dict().items():
        left = torch.stack([end[name] for end, here in zip(seen.ends, stays, strict=True) if here]).mean(dim=0)
        torch.testing.assert_close(tensor, left, rtol=0, atol=1e-4)


def test_below_the_threshold_the_merged_half_stays() -> None:
    seen = Handed()
    rule = SecureAggregation(drop_out=0.3, threshold=5)
    method = fit(build(SFL, batch_size=4, privacy=rule), rows(SIZES), 1, [seen])
    assert method.privacy_scalars()["privacy/aborted_total"] == 1
    assert differing(dict(method.client_half.state_dict()), seen.start) == []
    assert differing(seen.ends[0], seen.start)


def test_bytes_of_keys_shares_and_masked_entries() -> None:
    """Public keys of 256 bytes and shares of 66; of 5 clients one has gone."""
    seen, rule = Recorder(), SecureAggregation(drop_out=0.3, threshold=2)
    fit(build(SFL, privacy=rule), rows(SIZES), 1, [seen])
    left = sum(rule.stays(client, Moment(0, 0)) for client in range(5))
    assert 2 <= left < 5
    agreed_on = 5 * (256 + 2 * 4 * 66)
    assert seen.traffic_bytes[0]["weights", "up"] == agreed_on + left * (4 * 57 + 5 * 66)
    assert seen.traffic_bytes[0]["weights", "down"] == 5 * 56 * 4 + 5 * (4 * 256 + 2 * 4 * 66)


def test_it_repeats_and_resumes(tmp_path: Path) -> None:
    def trained(resume: Path | None = None) -> tuple[dict[str, Any], dict[str, float]]:
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        rule = SecureAggregation(drop_out=0.4, threshold=3)
        method = build(FedAvg, batch_size=4, participants=4, privacy=rule)
        fit(method, rows(SIZES), 4, [keep], resume, enable_checkpointing=True)
        return whole(method), method.privacy_scalars()

    wanted = trained()
    again = trained(tmp_path / "epoch=1.ckpt")
    assert differing(again[0], wanted[0]) == []
    assert again[1] == wanted[1]
    assert wanted[1]["privacy/aborted_total"] > 0


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (GAS, {}, "privacy='SecureAggregation' is not allowed: null in GAS, as clients come and go"),
        (SFL, {"participants": 1}, "with 2 participants or more: the sum of one is its update"),
        (SFL, {"privacy": SecureAggregation(levels=2**31)}, "privacy.levels=2147483648 is not"),
        (SFL, {"privacy": SecureAggregation(threshold=6)}, "privacy.threshold=6 is not allowed: at most 5"),
        (SFL, {"attendance": Attendance(overcommit=1.3)}, "attendance.overcommit=1.3 is not allowed: 1.0 with privacy"),
        (SFL, {"attendance": Attendance(deadline_s=1.0)}, "attendance.deadline_s=1.0 is not allowed: None with"),
    ],
    ids=lambda one: one[:50] if isinstance(one, str) else "",
)  # fmt: skip
def test_what_has_no_meaning_is_refused(cls: type[SplitMethod], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        fit(build(cls, **{"privacy": SecureAggregation(), **options}), rows(SIZES))


def test_a_thousand_and_more_clients_do_not_fit_the_usual_levels() -> None:
    ready(1024)
    with pytest.raises(ConfigError, match=r"privacy.levels=4194304 is not allowed: at most 4190211 with 1025"):
        ready(1025)


def test_a_schedule_says_how_many_updates_are_added(tmp_path: Path) -> None:
    """All clients that it lists take part, however few `participants` names: sums must not overflow."""
    (tmp_path / "schedule.json").write_text("[[0, 1, 2, 3, 4], [0, 1]]")

    def run(privacy: SecureAggregation | None) -> dict[str, Tensor]:
        selection = FixedSchedule(str(tmp_path / "schedule.json"))
        options: dict[str, Any] = {"participants": 2, "weighting": "uniform", "selection": selection}
        return whole(fit(build(FedAvg, privacy=privacy, **options), rows(SIZES), 2))

    with pytest.raises(ConfigError, match=r"privacy.levels=2147483648 is not allowed: at most 858993459 with 5"):
        run(SecureAggregation(levels=2**31))
    assert furthest(run(SecureAggregation(levels=2**29)), run(None)) < 1e-6
