"""Rules that make one state of those that clients hand in; importing them registers their short names for configs."""

from lightning_sfl.core.aggregators.base import Aggregator, WeightedAverage
from lightning_sfl.core.aggregators.clipping import DeviationClipping, NormClipping
from lightning_sfl.core.aggregators.cosine import CosineWeighted
from lightning_sfl.core.aggregators.krum import Krum
from lightning_sfl.core.aggregators.ranks import Median, TrimmedMean
from lightning_sfl.core.aggregators.unbiased import Unbiased

__all__ = [
    "Aggregator",
    "CosineWeighted",
    "DeviationClipping",
    "Krum",
    "Median",
    "NormClipping",
    "TrimmedMean",
    "Unbiased",
    "WeightedAverage",
]
