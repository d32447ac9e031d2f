"""Noise on smashed data: what the server gets, of whom, and that a run with it repeats and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sfl.core.cut import Boundary
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.privacy.smashed import SmashedNoise
from lightning_sfl.core.replay import Replay
from lightning_sfl.methods import GAS, SFL, FedAvg, FedSGD, MultiSFL, SplitMethod
from tests.every_method import CUT_METHODS, rich_of
from tests.tiny import Recorder, build, differing, fit, network, rows, whole

SIZES = (5, 4, 9, 2)


def test_the_noise_has_the_std_and_each_upload_its_own() -> None:
    boundary, smashed = Boundary(SmashedNoise(0.3, 0)), torch.ones(4, 5000, requires_grad=True)
    boundary.start_round(2)
    labels = torch.zeros(4)

    def noise(slot: int, client: int, step: int) -> torch.Tensor:
        upload = boundary.upload(slot, client, step, smashed, labels)
        assert upload.smashed is smashed
        return upload.received - 1

    found = [noise(0, 7, 1), noise(0, 7, 1), noise(0, 7, 2), noise(0, 8, 1), noise(1, 7, 1)]
    boundary.start_round(3)
    found.append(noise(0, 7, 1))
    assert float(found[0].std()) == pytest.approx(0.3, rel=0.02)
    cosines = torch.nn.functional.normalize(torch.stack(found).flatten(1)) @ torch.stack(found).flatten(1).T
    assert float((cosines / cosines.diagonal()).fill_diagonal_(0).abs().max()) < 0.04
    boundary.start_round(2)
    assert torch.equal(noise(0, 7, 1), found[0])
    assert boundary.traffic_bytes["smashed", "up"] == 4 * 5000 * 4


def test_several_parts_and_whole_numbers() -> None:
    boundary = Boundary(SmashedNoise(1.0, 0))
    parts = (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, dtype=torch.int64))
    first, second, whole_numbers = boundary.upload(0, 0, 0, parts, torch.zeros(2)).received
    assert not torch.equal(first, second)
    assert torch.equal(whole_numbers, parts[2])


@pytest.mark.parametrize("cls", CUT_METHODS)
def test_every_method_with_a_cut_learns_from_noised_data_as_often_as_it_is_run(cls: type[SplitMethod]) -> None:
    def run(noise: float) -> dict[str, Any]:
        options = {"participants": 3, "batch_size": 4, **rich_of(cls), "smashed_noise": noise}
        return whole(fit(build(cls, network(), **options), rows(SIZES), 2))

    assert differing(run(0.5), run(0.0))
    assert differing(run(0.5), run(0.5)) == []


@pytest.mark.parametrize("cls", [SFL, GAS])
def test_it_resumes(cls: type[SplitMethod], tmp_path: Path) -> None:
    def trained(resume: Path | None = None) -> dict[str, Any]:
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        method = build(cls, participants=3, batch_size=4, smashed_noise=0.5)
        return whole(fit(method, rows(SIZES), 3, [keep], resume, enable_checkpointing=True))

    assert differing(trained(), trained(tmp_path / "epoch=0.ckpt")) == []


def test_what_other_clients_lend_is_noised_too() -> None:
    """MultiSFL: the server gets features of rows of clients that take no part."""
    received = []

    class Seen(MultiSFL):
        name = MultiSFL.name

        def serve(self, uploads: Any) -> Any:
            received.extend(uploads)
            return super().serve(uploads)

    options = {"participants": 2, "batch_size": 2, "replay": Replay(proportion=0.5, most=0.9)}
    data = rows((6, 6, 6, 6))
    method = fit(build(Seen, cut_layer="relu1", smashed_noise=0.5, **options), data)
    lent = [upload for upload in received if upload.client_id not in method.feed.plan.participants]
    assert lent
    for upload in lent:
        assert float((upload.received < 0).float().mean()) > 0.05  # behind a ReLU nothing is below 0


@pytest.mark.parametrize("cls", [FedAvg, FedSGD])
def test_without_a_cut_there_is_nothing_to_noise(cls: type[SplitMethod]) -> None:
    with pytest.raises(ConfigError, match=f"smashed_noise=0.5 is not allowed: 0 in {cls.__name__}, where no smashed"):
        build(cls, smashed_noise=0.5)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_other_stds_are_refused(std: float) -> None:
    with pytest.raises(ConfigError, match=r"smashed_noise=.* is not allowed: a finite number >= 0"):
        build(SFL, smashed_noise=std)


def test_watchers_change_nothing() -> None:
    assert differing(*(whole(fit(build(SFL, smashed_noise=1.0), rows(), 1, seen)) for seen in ([], [Recorder()]))) == []
