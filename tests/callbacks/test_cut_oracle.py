"""The oracle at the cut layer, against plain autograd, and across the scales that methods put there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sfl.callbacks import OracleDistance, RoundRecord
from lightning_sfl.callbacks.cut_shift import CutShift, sent_along
from lightning_sfl.core.events import CutGradient
from lightning_sfl.core.mixing import SmashMix
from lightning_sfl.methods import SFL, USFL, FedAvg, MiniBatchSFL, Mix2SFL, MultiSFL
from lightning_sfl.records.round_log import read_rounds
from tests import tiny

SIZES = (5, 4, 9)
NAMES = ("G", "G_rel", "D_cos", "bias", "spread")


def told(folder: Path, cls: Any, rounds: int = 1, watch: dict[str, Any] | None = None, **options: Any) -> Any:
    """Scalars of each round of a run whose oracle looks at the cut, on all rows of all clients in one batch each."""
    oracle = OracleDistance(every=1, **{"cut": True, **(watch or {})})
    method = tiny.build(cls, tiny.network(dtype=torch.float64), **{"batch_size": None, **options})
    fit = tiny.trainer(rounds, [oracle, RoundRecord()], default_root_dir=folder, precision="64-true")
    fit.fit(method, tiny.rows(SIZES, dtype=torch.float64))
    return [record["scalars"] for record in read_rounds(folder / "rounds.jsonl")]


def row_gradients() -> tuple[list[Tensor], Tensor]:
    """Mean over rows of each row's own loss gradient at the cut, for each client and for everybody."""
    data, net = tiny.rows(SIZES, dtype=torch.float64).population, tiny.network(dtype=torch.float64)
    below, above = net[:2], net[2:]
    with torch.no_grad():
        smashed = below(data.x)
    found = []
    for row, label in zip(smashed, data.y, strict=True):  # row by row: no mean, no batch
        leaf = row.clone().requires_grad_()
        cross_entropy(above(leaf)[None], label[None]).backward()
        found.append(leaf.grad)
    each = torch.stack([gradient for gradient in found if gradient is not None])
    return [each[torch.from_numpy(rows)].mean(0) for rows in data.rows], each.mean(0)


def test_frozen_against_the_rows_one_by_one(tmp_path: Path) -> None:
    own, oracle = row_gradients()
    (scalars,) = told(tmp_path, SFL)
    total = sum(size / sum(SIZES) * float((g - oracle).square().sum()) for size, g in zip(SIZES, own, strict=True))
    assert scalars["oracle/cut_G"] == pytest.approx(total)
    assert scalars["oracle/cut_G_rel"] == pytest.approx(total / float(oracle.square().sum()))
    assert scalars["oracle/cut_spread"] == pytest.approx(total)
    assert scalars["oracle/cut_bias"] == pytest.approx(0, abs=1e-15)
    assert scalars["oracle/cut_D_cos"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MiniBatchSFL, {}),
        (MiniBatchSFL, {"client_gradient_scale": "concat_mean"}),
        (Mix2SFL, {"smashmix": SmashMix(ratio=0.0)}),
        (USFL, {}),
        (USFL, {"scale_client_gradient": True}),
        (MultiSFL, {}),
    ],
)
def test_live_is_frozen_at_every_scale_that_a_method_has(tmp_path: Path, cls: Any, options: dict[str, Any]) -> None:
    """One step of everybody from one state: what is left is who has which rows, not 1/B, 1/S or N/S."""
    (frozen,) = told(tmp_path / "frozen", SFL)
    (live,) = told(tmp_path / "live", cls, watch={"capture": "live"}, **options)
    for name in NAMES:
        assert live[f"oracle/cut_{name}"] == pytest.approx(frozen[f"oracle/cut_{name}"], rel=1e-6, abs=1e-12)


def test_the_scale_is_in_the_client_half_and_out_of_the_cut(tmp_path: Path) -> None:
    (own,), (joint,) = (
        told(tmp_path / scale, MiniBatchSFL, watch={"capture": "live"}, client_gradient_scale=scale)
        for scale in ("local_mean", "concat_mean")
    )
    assert joint["oracle/cut_G"] == pytest.approx(own["oracle/cut_G"])
    assert joint["oracle/client_G"] != pytest.approx(own["oracle/client_G"], rel=0.1)


def test_each_start_has_an_oracle_at_its_cut_too(tmp_path: Path) -> None:
    options = {"rounds": 3, "batch_size": 2}
    one = told(tmp_path / "global", MultiSFL, **options)
    own = told(tmp_path / "individual", MultiSFL, watch={"scope": "individual"}, **options)
    assert own[0]["oracle/cut_G"] == pytest.approx(one[0]["oracle/cut_G"])
    assert own[2]["oracle/cut_G"] != pytest.approx(one[2]["oracle/cut_G"], rel=1e-3)


def test_nothing_crosses_the_cut_and_nothing_is_asked(tmp_path: Path) -> None:
    (uncut,) = told(tmp_path / "uncut", FedAvg, watch={"capture": "live"})
    (plain,) = told(tmp_path / "plain", SFL, watch={"cut": False})
    for scalars in (uncut, plain):
        assert "oracle/client_G" in scalars
        assert not [tag for tag in scalars if tag.startswith("oracle/cut")]
    assert not hasattr(OracleDistance(cut=True), "on_cut_gradient")
    assert not hasattr(OracleDistance(capture="live"), "on_cut_gradient")


def test_several_parts_are_one_vector() -> None:
    """A cut through a block passes two tensors on; the message is divided by 7."""
    draw = torch.Generator().manual_seed(0)
    smashed = tuple(torch.randn(3, *shape, generator=draw, dtype=torch.float64) for shape in ((4,), (2, 2)))
    labels = torch.tensor([0, 2, 1])

    def logits(parts: tuple[Tensor, ...]) -> Tensor:
        return (parts[0] * parts[1].flatten(1))[:, :3]

    shift = CutShift(smashed)
    cross_entropy(logits(shift(smashed)), labels).backward()
    wanted = torch.cat([zero.grad.flatten() for zero in shift.zeros if zero.grad is not None])
    sent = tuple(part.clone().requires_grad_() for part in smashed)
    seen = logits(sent)
    seen.retain_grad()
    (cross_entropy(seen, labels, reduction="sum") / 7).backward()
    raw = tuple(part.grad for part in sent if part.grad is not None)
    event = CutGradient(0, 0, 0, raw, raw, seen, seen.grad, labels, 3)
    found = sent_along(event)
    assert found is not None
    torch.testing.assert_close(found, wanted)
    silent = CutGradient(0, 0, 0, raw, raw, seen, torch.zeros_like(seen), labels, 3)
    assert sent_along(silent) is None
    assert [tuple(part.shape) for part in shift(smashed)] == [(3, 4), (3, 2, 2)]
    assert isinstance(shift.zeros, nn.ParameterList)
