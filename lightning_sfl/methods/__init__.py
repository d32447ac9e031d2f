"""The methods, one file each; importing them registers their short names for configs."""

from lightning_sfl.core.fed_cbs import FedCBS  # noqa: F401
from lightning_sfl.core.label_selection import LabelAware  # noqa: F401
from lightning_sfl.core.oort import Oort  # noqa: F401
from lightning_sfl.core.power_of_choice import PowerOfChoice  # noqa: F401
from lightning_sfl.methods.base import SplitMethod
from lightning_sfl.methods.ca2fl import CA2FL
from lightning_sfl.methods.centralized import Centralized
from lightning_sfl.methods.cfl import CFL
from lightning_sfl.methods.fedasync import FedAsync
from lightning_sfl.methods.fedavg import FedAvg
from lightning_sfl.methods.fedbuff import FedBuff
from lightning_sfl.methods.fedsgd import FedSGD
from lightning_sfl.methods.gas import GAS
from lightning_sfl.methods.holograd import HoloGrad
from lightning_sfl.methods.ifca import IFCA
from lightning_sfl.methods.minibatch_sfl import MiniBatchSFL
from lightning_sfl.methods.mix2sfl import Mix2SFL
from lightning_sfl.methods.multisfl import MultiSFL
from lightning_sfl.methods.per_fedavg import PerFedAvg
from lightning_sfl.methods.reptile import Reptile
from lightning_sfl.methods.scaffold_sfl import ScaffoldSFL
from lightning_sfl.methods.scala import SCALA
from lightning_sfl.methods.sfl import SFL
from lightning_sfl.methods.sfl_prox import SFLProx
from lightning_sfl.methods.sfl_v1 import SFLV1
from lightning_sfl.methods.sfl_v2 import SFLV2
from lightning_sfl.methods.split_learning import SplitLearning
from lightning_sfl.methods.usfl import USFL

__all__ = [
    "CA2FL",
    "CFL",
    "GAS",
    "IFCA",
    "SCALA",
    "SFL",
    "SFLV1",
    "SFLV2",
    "USFL",
    "Centralized",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedSGD",
    "HoloGrad",
    "MiniBatchSFL",
    "Mix2SFL",
    "MultiSFL",
    "PerFedAvg",
    "Reptile",
    "SFLProx",
    "ScaffoldSFL",
    "SplitLearning",
    "SplitMethod",
]
