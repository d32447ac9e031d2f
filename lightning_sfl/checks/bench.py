"""The bench of all checks: makes the method anew on a handful of rows, and trains it in memory."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_sfl.checkpoint import DurableCheckpointIO
from lightning_sfl.checks.few import FewRows, few_rows
from lightning_sfl.checks.finding import FAILURES, NotApplicable
from lightning_sfl.checks.seen import Numbers, Seen, whole
from lightning_sfl.checks.surroundings import default_dtype, stirred_generators
from lightning_sfl.core.errors import ConfigError, DataError
from lightning_sfl.core.split import Split, split
from lightning_sfl.methods.base import SplitMethod

Make = Callable[[Mapping[str, Any]], SplitMethod]
QUIET: dict[str, Any] = {
    "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
    "use_distributed_sampler": False, "devices": 1, "log_every_n_steps": 1,
}  # fmt: skip
EXACT = "64-true"


class Bench:
    """A method, its data and how both are made small.

    Args:
        make: builds the method anew, with these options in place of the user's where it takes them.
        data: set up; the rows are the first ones of its clients.
        clients: how many.
        rows: of each, at most; more when the method refuses to train on so few.
        precision: of the runs that are compared bit for bit; the others are in double precision, on the CPU.
        accelerator: of the runs that are compared bit for bit.
    """

    def __init__(
        self,
        make: Make,
        data: Any,
        clients: int = 4,
        rows: int = 8,
        precision: Any = "32-true",
        accelerator: str = "auto",
    ) -> None:
        self.make, self.data, self.clients, self.rows = make, data, clients, rows
        self.precision, self.accelerator = precision, accelerator
        self.method = make({})
        self.few = few_rows(data, clients, rows)

    # --- the method -------------------------------------------------------------------------------------------------

    @cached_property
    def departures(self) -> Mapping[str, str]:
        """Names of lines that do not hold for this method by design, with the reason."""
        return self.method.departures()

    @cached_property
    def small(self) -> dict[str, Any]:
        """Options that make a round short."""
        work, most = self.method.work, max(2, self.rows // 2)
        return {
            "participants": max(1, min(self.method.participants, len(self.few.population.rows) - 1)),
            "batch_size": None if work.batch_size is None else min(work.batch_size, most),
            "local_epochs": min(work.local_epochs, 2),
            "local_steps": None if work.local_steps is None else min(work.local_steps, 4),
        }

    def new(self, **options: Any) -> SplitMethod:
        """The method, small, with these options besides."""
        return self.make({**self.small, **options})

    def reference(self, cls: type[SplitMethod], fixed: Sequence[str] = (), **options: Any) -> SplitMethod:
        """A method of this package on the same network, cut and options; `fixed`: those that it does not take."""
        own = self.new()
        client, server = own.factories["client"], own.factories["server"]
        (client_optimizer, client_scheduler), (server_optimizer, server_scheduler) = client, server
        shared = {
            "client_optimizer": client_optimizer or server_optimizer,
            "client_scheduler": client_scheduler if client_optimizer else server_scheduler,
            "server_optimizer": server_optimizer or client_optimizer,
            "server_scheduler": server_scheduler if server_optimizer else client_scheduler,
            "weighting": own.weighting, "bn_buffers": own.bn_buffers.replace("local", "average"),
            "client_order": own.client_order, "seed": own.seed, **self.small, **options,
        }  # fmt: skip
        return cls(own.backbone[0], own.cut_layer, **{k: v for k, v in shared.items() if k not in fixed})

    # --- a run ------------------------------------------------------------------------------------------------------

    def trainer(self, rounds: int, callbacks: Sequence[L.Callback] = (), **options: Any) -> L.Trainer:
        """A silent Trainer whose files, if any, lie in a folder that the caller gives."""
        exact = options.get("precision") == EXACT
        settings = {
            "enable_checkpointing": False, "limit_val_batches": 0, "precision": self.precision, **QUIET,
            "accelerator": "cpu" if exact else self.accelerator, "default_root_dir": tempfile.gettempdir(), **options,
        }  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return L.Trainer(max_epochs=rounds, callbacks=list(callbacks), plugins=[DurableCheckpointIO()], **settings)

    def fit(
        self,
        method: SplitMethod,
        data: FewRows | None = None,
        rounds: int = 1,
        callbacks: Sequence[L.Callback] = (),
        resume: Path | None = None,
        **options: Any,
    ) -> SplitMethod:
        """Train, whatever the global generators hold; the method itself comes back."""
        trainer = self.trainer(rounds, callbacks, **options)
        with warnings.catch_warnings(), stirred_generators():
            warnings.simplefilter("ignore")
            trainer.fit(method, data or self.few, ckpt_path=resume)
        return method

    def judge(self, method: SplitMethod) -> None:
        """Validate on the few rows."""
        trainer = self.trainer(1, limit_val_batches=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.validate(method, self.few, verbose=False)

    def exact(self, method: SplitMethod, data: FewRows | None = None, rounds: int = 1, *watch: Seen) -> Numbers:
        """The merged network after training in double precision (or what `precise` found the network can take)."""
        return whole(self.fit(method, data, rounds, watch, precision=self.precise))

    @cached_property
    def alone(self) -> Numbers:
        """The merged network after two rounds as the user would train it, nobody watching."""
        return whole(self.fit(self.new(), rounds=2))

    def grow(self) -> None:
        """Take more clients, then more rows of each, until the method trains; raises what it says if it never does."""
        population = self.data.population
        for clients, rows in ((1, 1), (2, 1), (4, 1), (4, 4), (4, 16)):
            self.few = few_rows(self.data, clients * self.clients, rows * self.rows)
            vars(self).pop("small", None)
            last = rows == 16 or (
                clients * self.clients >= population.num_clients and self.rows >= max(population.sizes)
            )
            try:
                self.fit(self.new())
            except (ConfigError, DataError):
                if last:
                    raise
            except FAILURES:
                return  # more rows would not help; the lines will say what is wrong
            else:
                return

    # --- the network ------------------------------------------------------------------------------------------------

    @cached_property
    def halves(self) -> Split:
        """The network's halves; ConfigError where it cannot be cut there."""
        return split(self.make({}).backbone[0], self.method.cut_layer, self.few.example())

    @cached_property
    def precise(self) -> str:
        """The precision of comparisons up to rounding: double, unless the network does not run in it."""
        network = copy.deepcopy(self.method.backbone[0]).double().train()
        try:
            with default_dtype(torch.float64), torch.no_grad():
                network(self.few.batch()[0])
        except RuntimeError:
            return "32-true"
        return EXACT

    @property
    def rounding(self) -> float:
        """What rounding alone may add up to in a few steps."""
        return 1e-9 if self.precise == EXACT else 1e-4

    @contextmanager
    def in_doubt(self) -> Iterator[None]:
        """Make the precision of `precise` the default one."""
        with default_dtype(torch.float64 if self.precise == EXACT else torch.get_default_dtype()):
            yield

    def need(self, condition: bool, reason: str) -> None:
        """Say that a check is not applicable, and why, unless the condition holds."""
        if not condition:
            raise NotApplicable(reason)
