"""Data of a federation: sources of rows, partitions over clients, and the Lightning module that joins them."""

from __future__ import annotations

from lightning_sfl.data.datamodule import FederatedData
from lightning_sfl.data.parquet import Hub, Parquet
from lightning_sfl.data.partition import IID, Dirichlet, Partition, QuantitySkew, Shards
from lightning_sfl.data.partition_classes import MainClass, Pathological, ShardDirichlet
from lightning_sfl.data.partition_given import FromFile, Natural
from lightning_sfl.data.play import PlayText
from lightning_sfl.data.source import Corpus, Digits, Source, Synthetic

__all__ = [
    "IID",
    "Corpus",
    "Digits",
    "Dirichlet",
    "FederatedData",
    "FromFile",
    "Hub",
    "MainClass",
    "Natural",
    "Parquet",
    "Partition",
    "Pathological",
    "PlayText",
    "QuantitySkew",
    "ShardDirichlet",
    "Shards",
    "Source",
    "Synthetic",
]
