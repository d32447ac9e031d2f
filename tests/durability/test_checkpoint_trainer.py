"""The plugin inside Lightning's own Trainer: save, damage, resume; and its files under the plain Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sfl.checkpoint import DurableCheckpointIO, newest_good, verify

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*dirpath has changed"),
]


class Line(L.LightningModule):
    """One weight, full-batch gradient descent with momentum: the state matters on resume."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return (self.layer(batch[0]) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def fit(folder: Path, rounds: int, resume: Path | None = None, plugins: Any = None) -> Line:
    line = Line()
    keep = ModelCheckpoint(folder, filename="round-{epoch:06d}", auto_insert_metric_name=False, save_top_k=-1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=rounds,
        logger=False,
        callbacks=[keep],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        plugins=DurableCheckpointIO() if plugins is None else plugins,
        default_root_dir=folder,
    )
    loader = DataLoader(TensorDataset(torch.eye(2)), batch_size=2)
    trainer.fit(line, loader, ckpt_path=resume)
    assert trainer.current_epoch == rounds
    return line


def weights(line: Line) -> Tensor:
    return line.layer.weight.detach().clone()


def test_a_damaged_newest_checkpoint_costs_a_round_not_the_result(tmp_path: Path) -> None:
    whole = weights(fit(tmp_path / "whole", 6))
    folder = tmp_path / "resumed"
    fit(folder, 4)
    newest = newest_good(folder)
    assert newest == folder / "round-000003.ckpt"
    data = bytearray(newest.read_bytes())
    data[500] ^= 4
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match=r"round-000003.ckpt is damaged.*round-000002.ckpt instead"):
        resumed = fit(folder, 6, resume=newest)
    assert torch.equal(weights(resumed), whole)
    assert verify(folder / "round-000005.ckpt") is None


def test_the_plain_trainer_resumes_our_files(tmp_path: Path) -> None:
    whole = weights(fit(tmp_path / "whole", 4))
    fit(tmp_path / "ours", 2)
    plain = fit(tmp_path / "plain", 4, resume=tmp_path / "ours" / "round-000001.ckpt", plugins=[])
    assert torch.equal(weights(plain), whole)
    assert "foreign" in str(verify(tmp_path / "plain" / "round-000003.ckpt"))
