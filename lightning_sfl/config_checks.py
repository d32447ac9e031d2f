"""Settings that types cannot refuse: options of the Trainer that would change what a round is, and nulls."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from lightning_sfl.class_names import kind_of
from lightning_sfl.core.errors import require
from lightning_sfl.core.precision import ALLOWED, PRECISIONS

STRATEGIES = ("auto", "split")
ROUNDS = "rounds are counted by trainer.max_epochs, and one round is one step of the Trainer"

# Options of Lightning's Trainer that would change what a round is: the values that do not, and why not others.
TRAINER: dict[str, tuple[tuple[Any, ...], str]] = {
    "precision": (
        (None, 32, "32", *PRECISIONS),
        ALLOWED,
    ),
    "strategy": (STRATEGIES, "only auto: the halves are placed by placement.mode"),
    "gradient_clip_val": ((None,), "only null: use model.client_clip and model.server_clip"),
    "gradient_clip_algorithm": ((None,), "only null: use model.client_clip and model.server_clip"),
    "accumulate_grad_batches": ((1,), "only 1: use model.batch_size"),
    "use_distributed_sampler": ((False,), "only false: clients draw their own rows"),
    "limit_train_batches": ((None, 1, 1.0), f"only null: {ROUNDS}"),
    "overfit_batches": ((0, 0.0), f"only 0: {ROUNDS}"),
    "limit_val_batches": ((None, 1.0), "only null: curves are drawn on all rows that data.val_fraction holds out"),
    "limit_test_batches": ((None, 1.0), "only null: the test set is judged as a whole"),
    "val_check_interval": ((None, 1, 1.0), f"only null: {ROUNDS}"),
    "max_steps": ((-1,), f"only -1: {ROUNDS}"),
    "min_steps": ((None,), f"only null: {ROUNDS}"),
    "barebones": ((False,), "only false: a run is recorded"),
}
MOST = 1_000_000
PLAIN = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}


def check_trainer(trainer: Any) -> None:
    """Refuse options of the Trainer that would change what a round is, or that this package has its own for."""
    for key, (allowed, why) in TRAINER.items():
        value = trainer[key]
        fits = any(value == fit and type(value) is type(fit) for fit in allowed)
        require(fits, f"trainer.{key}", value, why)
    check_processes(trainer.devices, trainer.num_nodes)
    check_loggers(trainer.logger)
    rounds, every, folder = trainer.max_epochs, trainer.check_val_every_n_epoch, trainer.default_root_dir
    require(is_count(rounds), "trainer.max_epochs", rounds, "an integer >= 1: the number of rounds")
    require(
        rounds <= MOST,
        "trainer.max_epochs",
        rounds,
        f"at most {MOST:,}: schedules are tried on all rounds at the start",
    )
    require(is_count(every), "trainer.check_val_every_n_epoch", every, "an integer >= 1")
    require(bool(folder), "trainer.default_root_dir", folder, "a folder for the runs")


def check_loggers(given: Any) -> None:
    """Refuse a logger whose package is not there: the parser would only say that it is no logger."""
    for entry in given if isinstance(given, list) else [given]:
        path = str(entry.get("class_path")) if isinstance(entry, Namespace) else ""
        there = not path.endswith(".WandbLogger") or find_spec("wandb") is not None
        require(there, "trainer.logger", "WandbLogger", 'only with its package: pip install "lightning_sfl[wandb]"')


def check_processes(devices: Any, nodes: Any) -> None:
    """Refuse what is no number of processes; which GPUs a list names is for Lightning to check."""
    listed = isinstance(devices, list) and len(devices) > 0 and all(isinstance(each, int) for each in devices)
    counted = is_count(devices) or (isinstance(devices, str) and devices.isdecimal() and int(devices) > 0)
    known = listed or counted or devices in ("auto", -1, "-1")
    require(known, "trainer.devices", devices, "an integer >= 1, a list of GPUs, or auto: one process for each")
    require(is_count(nodes), "trainer.num_nodes", nodes, "an integer >= 1")


def is_count(value: object) -> bool:
    """Whether this is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_nulls(settings: Namespace, key: str = "") -> None:
    """Refuse null where a constructor wants a number, a text or a class: the parser lets it pass."""
    for name, value in vars(settings).items():
        path = f"{key}.{name}".lstrip(".")
        if isinstance(value, Namespace):
            if "class_path" in value and "init_args" in value:
                module, _, short = str(value.class_path).rpartition(".")
                check_arguments(getattr(import_module(module), short), value.init_args, path)
            check_nulls(value, key if name == "init_args" else path)


def check_arguments(owner: Any, arguments: Namespace, key: str) -> None:
    """The nulls among the arguments of one class, and groups of options that are no group."""
    hints = hints_of(owner) if isinstance(owner, type) else {}
    for option, value in vars(arguments).items():
        hint = hints.get(option)
        group = next((part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)), None)
        if group is None and isinstance(hint, type):
            kind = kind_of(option)
            allowed = PLAIN.get(hint, f"a {kind.noun}: one of {kind.listed()}, or the import path of your own")
            require(value is not None, f"{key}.{option}", value, allowed)
        elif group is not None and not isinstance(value, group) and (value is not None or group is hint):
            names = ", ".join(field.name for field in fields(group))
            require(isinstance(value, Namespace), f"{key}.{option}", value, f"settings as `name: value` of {names}")
            check_arguments(group, value, f"{key}.{option}")


def hints_of(owner: type) -> dict[str, Any]:
    """Types of the constructor's parameters, of the bases' where it only hands them on."""
    found: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        if "__init__" in vars(base):
            try:
                found |= get_type_hints(base.__init__)  # type: ignore[misc]
            except (NameError, TypeError):
                continue
    return found
