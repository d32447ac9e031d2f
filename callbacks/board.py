"""A round's report as one TensorBoard event; written value by value it costs more than a dozen training steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_sfl.callbacks.pictures import diverging
from lightning_sfl.records.report import RoundReport

BUCKETS = 30  # as many as TensorBoard draws


def show(logger: TensorBoardLogger, report: RoundReport) -> None:
    """Scalars, histograms and pictures, at step = round."""
    experiment: Any = logger.experiment
    from torch.utils.tensorboard import summary as proto  # slow to import, and there once a logger writes

    tagged = report.scalars.items()
    summary = proto.Summary(value=[proto.Summary.Value(tag=tag, simple_value=float(value)) for tag, value in tagged])
    for tag, vector in report.vectors.items():
        values = np.asarray(vector, dtype=float)
        summary.MergeFrom(proto.histogram(tag, values, np.linspace(values.min(), values.max(), BUCKETS + 1)))
    for tag, matrix in report.pictures.items():
        summary.MergeFrom(proto.image(tag, diverging(matrix), dataformats="HWC"))
    experiment._get_file_writer().add_summary(summary, report.round)
