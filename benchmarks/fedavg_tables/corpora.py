"""The data of the tables: 100 clients of 600 digits, the roles of a play, 100 clients of 500 small pictures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from benchmarks.fedavg_tables.cells import IID as EVEN
from benchmarks.fedavg_tables.cells import Cell
from lightning_sfl.core.errors import require
from lightning_sfl.data import IID, FederatedData, Natural, Parquet, Partition, PlayText, Shards, Source

FOLDERS = {"2nn": "mnist", "cnn": "mnist", "lstm": "shakespeare/input.txt", "cifar": "cifar10"}
EVAL_ROWS = 1000
# The play has as many IID clients as it has roles with two windows of 80 characters or more.
CLIENTS = 100


@cache
def source_of(network: str, folder: Path, cache_dir: str | None) -> Source:
    """The source, once; where its files are missing, one line says what is."""
    path = folder / FOLDERS[network]
    require(path.exists(), "data", str(folder), f"a folder with {FOLDERS[network]} in it")
    if network == "lstm":
        return PlayText(str(path))
    return Parquet(str(path), cache_dir=cache_dir)


@cache
def data_of(network: str, split: str, seed: int, folder: Path, cache_dir: str | None) -> FederatedData:
    """All training rows dealt to clients, judged on the test rows; in memory, and kept for the next run."""
    source = source_of(network, folder, cache_dir)
    clients: int | None = CLIENTS
    partition: Partition = IID()
    if network == "lstm":
        clients, partition = roles_in(source), (IID() if split == EVEN else Natural())
    elif split != EVEN:
        partition = Shards(per_client=2)
    data = FederatedData(
        source, partition, num_clients=clients, val_fraction=0.0, eval_set="test", eval_batch_size=EVAL_ROWS, seed=seed
    )
    data.setup()
    return data


def data_for(cell: Cell, seed: int, folder: Path, cache_dir: str | None) -> FederatedData:
    """The data of a cell."""
    return data_of(cell.network, cell.split, seed, folder, cache_dir)


@cache
def roles_in(source: Source) -> int:
    """How many natural clients there are."""
    owner = source.load().owner
    return 0 if owner is None else int(owner.max()) + 1
