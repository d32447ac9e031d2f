"""Callbacks that watch a run and never change it: event -> measure -> record.

Their one import path is `lightning_sfl.callbacks`; `import callbacks` in a checkout gives the same class objects.
"""

from __future__ import annotations

import sys

if __name__ == "callbacks":
    import lightning_sfl.callbacks  # noqa: F401

    for _name, _module in list(sys.modules.items()):
        if _name == "lightning_sfl.callbacks" or _name.startswith("lightning_sfl.callbacks."):
            sys.modules[_name.removeprefix("lightning_sfl.")] = _module
else:
    from lightning.pytorch.callbacks import Callback

    from lightning_sfl.callbacks.client_metrics import ClientMetrics
    from lightning_sfl.callbacks.cosine_alignment import CosineAlignment
    from lightning_sfl.callbacks.cut_scale import CutScale
    from lightning_sfl.callbacks.drift import Drift
    from lightning_sfl.callbacks.estimate_quality import EstimateQuality
    from lightning_sfl.callbacks.first_screen import FirstScreen
    from lightning_sfl.callbacks.gradient_dissimilarity import GradientDissimilarity
    from lightning_sfl.callbacks.gradient_divergence import GradientDivergence
    from lightning_sfl.callbacks.initial_distance import InitialDistance
    from lightning_sfl.callbacks.label_imbalance import LabelImbalance
    from lightning_sfl.callbacks.oracle_distance import OracleDistance
    from lightning_sfl.callbacks.probe_alignment import ProbeAlignment
    from lightning_sfl.callbacks.progress import RoundProgress
    from lightning_sfl.callbacks.proof_check import ProofCheck
    from lightning_sfl.callbacks.round_record import RoundRecord
    from lightning_sfl.callbacks.stop_at import StopAt
    from lightning_sfl.callbacks.traffic import Traffic
    from lightning_sfl.callbacks.update_counts import UpdateCounts
    from lightning_sfl.callbacks.watcher import Watcher

    __all__ = [
        "DEFAULTS",
        "OPTIONAL",
        "ClientMetrics",
        "CosineAlignment",
        "CutScale",
        "Drift",
        "EstimateQuality",
        "FirstScreen",
        "GradientDissimilarity",
        "GradientDivergence",
        "InitialDistance",
        "LabelImbalance",
        "OracleDistance",
        "ProbeAlignment",
        "ProofCheck",
        "RoundProgress",
        "RoundRecord",
        "StopAt",
        "Traffic",
        "UpdateCounts",
        "Watcher",
        "default_callbacks",
    ]

    # config key -> class: what every run watches unless its key says otherwise; stop_at only counts, until it is told
    DEFAULTS: dict[str, type[Callback]] = {
        "gradient_divergence": GradientDivergence,
        "cosine_alignment": CosineAlignment,
        "update_counts": UpdateCounts,
        "traffic": Traffic,
        "drift": Drift,
        "initial_distance": InitialDistance,
        "cut_scale": CutScale,
        "label_imbalance": LabelImbalance,
        "round_record": RoundRecord,
        "stop_at": StopAt,
    }

    # config key -> class: what the command line adds where its key says `every`; it is never there by itself
    OPTIONAL: dict[str, type[Callback]] = {
        "probe_alignment": ProbeAlignment,
        "oracle_distance": OracleDistance,
        "gradient_dissimilarity": GradientDissimilarity,
        "client_metrics": ClientMetrics,
    }

    def default_callbacks(progress_bar: bool = True) -> list[Callback]:
        """What every run watches unless told otherwise; Lightning refuses a progress bar when its own option is off."""
        watching = [*(watch() for watch in DEFAULTS.values()), FirstScreen()]
        return [*watching, RoundProgress()] if progress_bar else watching
