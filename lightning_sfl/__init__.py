"""Split federated learning on PyTorch Lightning: one training loop, many methods, and what each of them did.

The names below load on first use, so that `import lightning_sfl` costs no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_sfl.core.split import split as split
    from lightning_sfl.data import FederatedData as FederatedData
    from lightning_sfl.methods import CA2FL as CA2FL
    from lightning_sfl.methods import CFL as CFL
    from lightning_sfl.methods import GAS as GAS
    from lightning_sfl.methods import IFCA as IFCA
    from lightning_sfl.methods import SCALA as SCALA
    from lightning_sfl.methods import SFL as SFL
    from lightning_sfl.methods import SFLV1 as SFLV1
    from lightning_sfl.methods import SFLV2 as SFLV2
    from lightning_sfl.methods import USFL as USFL
    from lightning_sfl.methods import Centralized as Centralized
    from lightning_sfl.methods import FedAsync as FedAsync
    from lightning_sfl.methods import FedAvg as FedAvg
    from lightning_sfl.methods import FedBuff as FedBuff
    from lightning_sfl.methods import FedSGD as FedSGD
    from lightning_sfl.methods import HoloGrad as HoloGrad
    from lightning_sfl.methods import MiniBatchSFL as MiniBatchSFL
    from lightning_sfl.methods import Mix2SFL as Mix2SFL
    from lightning_sfl.methods import MultiSFL as MultiSFL
    from lightning_sfl.methods import PerFedAvg as PerFedAvg
    from lightning_sfl.methods import Reptile as Reptile
    from lightning_sfl.methods import ScaffoldSFL as ScaffoldSFL
    from lightning_sfl.methods import SFLProx as SFLProx
    from lightning_sfl.methods import SplitLearning as SplitLearning
    from lightning_sfl.trainer import trainer as trainer

__version__ = "0.1.0"

_METHODS = (
    "SFL",
    "SFLV1",
    "SFLV2",
    "SplitLearning",
    "MiniBatchSFL",
    "USFL",
    "SCALA",
    "Mix2SFL",
    "MultiSFL",
    "ScaffoldSFL",
    "SFLProx",
    "GAS",
    "FedAvg",
    "FedSGD",
    "FedAsync",
    "FedBuff",
    "CA2FL",
    "PerFedAvg",
    "Reptile",
    "IFCA",
    "CFL",
    "HoloGrad",
    "Centralized",
)
_HOMES = {
    **dict.fromkeys(_METHODS, "lightning_sfl.methods"),
    "FederatedData": "lightning_sfl.data",
    "split": "lightning_sfl.core.split",
    "trainer": "lightning_sfl.trainer",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604

# Installed, callbacks and configs lie in this folder; in a checkout they stand at the top level of the repository.
_checkout = Path(__file__).resolve().parent.parent
if not Path(__file__).with_name("callbacks").is_dir() and (_checkout / "callbacks" / "__init__.py").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Face(ModuleType):
    """Keeps `lightning_sfl.trainer` the function, although the submodule that defines it has the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
