"""One process of several: `worker.py PROCESSES RESULTS CASE ...` trains each case in turn and saves what came of it.

A case is METHOD:MODE and options: `dropout`, `norm` (batch normalisation), `rich` (whatever the method can do), `adam`,
`double` (precision), `bf16` (mixed precision), and the names of OPTIONS.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

import lightning_sfl.methods as registry
from lightning_sfl.checkpoint import DurableCheckpointIO
from lightning_sfl.core.adaptive import FedYogi
from lightning_sfl.core.aggregators import CosineWeighted, Krum, Median, NormClipping, TrimmedMean
from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.byzantine import Byzantine
from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.effort import Decay, EpsilonGreedy, Plateau
from lightning_sfl.core.errors import SFLError
from lightning_sfl.core.fed_cbs import FedCBS
from lightning_sfl.core.holograd.basis import BasisChoice
from lightning_sfl.core.oort import Oort
from lightning_sfl.core.power_of_choice import PowerOfChoice
from lightning_sfl.core.privacy import CentralDP, GradientMasking, LocalDP, SecureAggregation
from lightning_sfl.core.privacy.sample import SampleDP
from lightning_sfl.core.stragglers import Stragglers
from lightning_sfl.placement import Placement, SplitStrategy
from tests.every_method import rich_of
from tests.tiny import Recorder, build, network, rows, sgd, trainer, whole

TIMEOUT_S = 60.0


# what all methods share, and what HoloGrad can do besides; made anew for each case, since some remember
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "median": lambda: {"aggregator": Median()},
    "trimmed": lambda: {"aggregator": TrimmedMean(1)},
    "krum": lambda: {"aggregator": Krum(num_byzantine=0)},
    "cosine": lambda: {"aggregator": CosineWeighted()},
    "previous": lambda: {"aggregator": CosineWeighted(reference="previous")},
    "clipped": lambda: {"aggregator": NormClipping()},
    "fedopt": lambda: {"merge_optimizer": sgd(0.9, 0.9)},
    "yogi": lambda: {"merge_optimizer": FedYogi},
    "own_scale": lambda: {"dynamics": Dynamics(client_scale="own")},
    "joint_scale": lambda: {"dynamics": Dynamics(client_scale="joint")},
    "steps": lambda: {"dynamics": Dynamics(server_steps=2)},
    "start": lambda: {"dynamics": Dynamics(start="merged")},
    "stacked": lambda: {"client_engine": "stacked"},
    "compiled": lambda: {"compile": True},
    "away": lambda: {"attendance": Attendance(availability=0.6, quorum=2)},
    "chances": lambda: {"attendance": Attendance(availability=[0.4, 0.7, 1.0, 0.6], quorum=2)},
    "late": lambda: {"attendance": Attendance(overcommit=1.3, deadline_s=1e-5, quorum=2)},
    "decay": lambda: {"effort": Decay(epochs_factor=0.7, batch_factor=1.3, most_batch=6), "local_epochs": 3},
    "plateau": lambda: {"effort": Plateau(patience=1), "local_epochs": 3},
    "bandit": lambda: {"effort": EpsilonGreedy([1, 2])},
    "oort": lambda: {"selection": Oort()},
    "picky": lambda: {"selection": Oort(min_rows=3, blacklist_after=0), "participants": 2},
    "power": lambda: {"selection": PowerOfChoice(candidates=4)},
    "fedcbs": lambda: {"selection": FedCBS()},
    "own_layers": lambda: {"bn_buffers": "local"},
    "bounded": lambda: {"client_clip": 0.5, "server_clip": 0.5},
    "partitioned": lambda: {
        "topology": "partitioned", "byzantine": Byzantine(0.25, "noise"), "stragglers": Stragglers("first", first=2),
        "num_scalars": 40, "directions": "random",
    },
    "local_dp": lambda: {"privacy": LocalDP(1.0, 0.1)},
    "central_dp": lambda: {"privacy": CentralDP(0.5, 0.1, None, adaptive=True), "weighting": "uniform"},
    "masked": lambda: {"privacy": GradientMasking(0.3, error_feedback=True)},
    "secure": lambda: {"privacy": SecureAggregation(drop_out=0.2, threshold=2)},
    "noised": lambda: {"smashed_noise": 0.3},
    "by_rows": lambda: {"sample_dp": SampleDP(0.5, 0.5, None)},
    "forward": lambda: {"projection": "jvp"},
    "turning": lambda: {"basis": BasisChoice("momentum"), "num_scalars": 40, "directions": "random"},
}  # fmt: skip


class Closely(Recorder):
    """Also keeps what stood in the halves, their gradients and the cut gradients when each event came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[torch.Tensor]] = []

    def _look(self, module: Any, event: Any, tensors: Any) -> None:
        self._keep(module, event)
        self.seen.append([tensor.detach().clone() for tensor in tensors if tensor is not None])

    def on_cut_gradient(self, module: Any, event: Any) -> None:
        self._look(module, event, [*event.raw, *event.sent, event.logits, event.logits_gradient, event.labels])

    def on_client_backward(self, module: Any, event: Any) -> None:
        self._look(module, event, [p.grad for turn in event.turns for p in turn.client_half.parameters()])

    def on_client_step(self, module: Any, event: Any) -> None:
        halves = [half for turn in event.turns for half in (turn.client_half, turn.server_half) if half is not None]
        self._look(module, event, [tensor for half in halves for tensor in half.state_dict().values()])

    def on_server_step(self, module: Any, event: Any) -> None:
        labels = [labels for labels, _ in event.labels]
        self._look(module, event, [*event.server_half.state_dict().values(), *labels])

    def on_scalars_sent(self, module: Any, event: Any) -> None:
        halves = (event.client_half, event.server_half)
        self._look(module, event, [event.scalars, *(p.grad for half in halves for p in half.parameters())])


def train(case: str, processes: int, rounds: int = 4, resume: str | None = None, save: str | None = None) -> Any:
    """The outcome of a case: final state, what watchers were told, metrics and counts; or the text of an error."""
    name, mode, *flags = case.split(":")
    several: dict[str, Any] = {"strategy": SplitStrategy(Placement(mode, TIMEOUT_S)), "devices": processes}
    several = several if processes > 1 else {}
    optimizer = torch.optim.Adam if "adam" in flags else sgd(0.1, 0.9)
    cls = getattr(registry, name)
    options = {"client_optimizer": optimizer, "server_optimizer": optimizer, "participants": 3, "batch_size": 4}
    options |= {"persist_server_optimizer": True} | (rich_of(cls) if "rich" in flags else {})
    for flag in flags:
        options |= OPTIONS[flag]() if flag in OPTIONS else {}
    dtype = torch.float64 if "double" in flags else torch.float32
    method = build(cls, network(0.2 if "dropout" in flags else 0.0, "norm" in flags, dtype), **options)
    recorder = Closely()
    if "double" in flags:
        several["precision"] = "64-true"
    if "bf16" in flags:
        several["precision"] = "bf16-mixed"
    run = trainer(rounds, [recorder], plugins=[DurableCheckpointIO()], **several)
    try:
        run.fit(method, rows((5, 4, 9, 2), dtype=dtype), ckpt_path=resume)
    except SFLError as error:
        return {"error": str(error)}
    if save is not None:
        run.save_checkpoint(save)
    return {
        "weights": whole(method),
        "starts": recorder.starts,
        "ends": recorder.ends,
        "seen": recorder.seen,
        "traffic": recorder.traffic_bytes,
        "events": [type(event).__name__ for event in recorder.events],
        "metrics": {tag: float(value) for tag, value in run.callback_metrics.items()},
        "steps": run.global_step,
    }


def main() -> None:
    processes, results, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    found = {}
    for case in cases:
        named, *chain = case.split(",")  # CASE,rounds=..,resume=..,save=..
        more = dict(each.split("=") for each in chain)
        rounds = int(more.pop("rounds", 4))
        found[case] = train(named, int(processes), rounds, more.get("resume"), more.get("save"))
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.save(found, f"{results}.{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
