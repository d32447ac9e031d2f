"""HoloGrad among clients that lie or come late."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_sfl.core.byzantine import Byzantine
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ServerBackward
from lightning_sfl.core.holograd.robust import Robust
from lightning_sfl.core.stragglers import Stragglers
from tests.methods.replicas import SIZE, SIZES, Messages, holograd
from tests.tiny import fit, furthest, rows, whole


@pytest.mark.parametrize("attack", ["noise", "one_sided", "sign_flip", "scale", "inner_product"])
def test_liars_send_what_they_are_told_to(attack: Any) -> None:
    truth, lies = Messages(), Messages()
    byzantine = Byzantine(0.5, attack, 3.0)
    fit(holograd(), rows(SIZES), 1, [truth])
    fit(holograd(byzantine=byzantine), rows(SIZES), 1, [lies])
    liars = byzantine.liars(0, 4)
    assert len(liars) == 2
    true = {sent.batch.client_id: sent.scalars for sent in truth.sent[0]}
    mean = torch.stack([scalars for client, scalars in true.items() if client not in liars]).mean(0)
    for sent in lies.sent[0]:
        own = true[sent.batch.client_id]
        if sent.batch.client_id not in liars:
            assert torch.equal(sent.scalars, own)
            continue
        if attack == "noise":
            assert 1 < sent.scalars.abs().max() <= 3
            assert not torch.equal(sent.scalars, own)
        else:
            wanted = {
                "one_sided": torch.full_like(own, 3.0), "sign_flip": -3 * own, "scale": 3 * own,
                "inner_product": -3 * mean,
            }[attack]  # fmt: skip
            torch.testing.assert_close(sent.scalars, wanted)


def test_trimming_defends_a_run_against_one_sided_liars() -> None:
    liars = Byzantine(0.25, "one_sided", 1e6)
    honest = whole(fit(holograd(), rows((6, 6, 6, 6)), 3))
    defended = whole(fit(holograd(byzantine=liars, robust=Robust("trimmed_mean", 0.25)), rows((6, 6, 6, 6)), 3))
    lost = whole(fit(holograd(byzantine=liars), rows((6, 6, 6, 6)), 3))
    assert furthest(honest, defended) < 0.2
    assert furthest(honest, lost) > 1e3


def test_late_uploads_do_not_count() -> None:
    draws = Stragglers("first", first=2)
    arrived, waited = draws.arrived(0, 0, (0, 1, 2, 3))
    seen, only = Messages(), Messages()
    fit(holograd(stragglers=draws), rows(SIZES), 1, [seen])
    assert seen.of(ServerBackward)[0].client_ids == tuple(arrived)
    assert seen.own[0]["comm/waited_s"] == waited
    scalars = torch.stack([seen.sent[0][i].scalars for i in arrived])
    shares = torch.tensor([float(SIZES[i]) for i in arrived])
    coefficients = seen.messages[0].coefficients[0]
    expected = SIZE / (40 + SIZE - 1) * (shares / shares.sum()) @ scalars
    torch.testing.assert_close(coefficients, expected)
    fit(holograd(), rows(SIZES), 1, [only])
    assert only.own[0]["comm/waited_s"] > waited


@pytest.mark.parametrize(("collect", "count"), [("all", 50), ("first", 7), ("window", None)])
def test_whom_the_server_waits_for(collect: Any, count: int | None) -> None:
    everybody = range(50)
    arrived, waited = Stragglers(collect, first=7, window_s=0.12).arrived(3, 5, everybody)
    assert arrived == sorted(set(arrived))
    assert count is None or len(arrived) == count
    if collect == "window":
        assert waited == 0.12
        assert 20 < len(arrived) < 45
    lonely, late = Stragglers("window", window_s=0.0, mean_s=1.0).arrived(3, 5, everybody)
    assert len(lonely) == 1
    assert late > 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: Byzantine(share=1.0), lambda: Byzantine(attack="x"), lambda: Byzantine(size=float("inf")),  # type: ignore[arg-type]
        lambda: Stragglers("x"), lambda: Stragglers(first=0), lambda: Stragglers(window_s=-1.0),  # type: ignore[arg-type]
        lambda: Stragglers(mean_s=float("nan")),
    ],
)  # fmt: skip
def test_ranges_of_the_wrappers(make: Any) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        make()
