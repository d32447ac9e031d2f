"""Everything a run does before its first round, once, in memory: so that a mistake costs no folder and no half run."""

from __future__ import annotations

import re
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_sfl.checkpoint import DurableCheckpointIO
from lightning_sfl.class_names import kind_of
from lightning_sfl.config_checks import MOST
from lightning_sfl.config_words import one_line, original
from lightning_sfl.core.errors import CheckpointError, ConfigError, SFLError, require
from lightning_sfl.core.optimizers import rehearse_schedule
from lightning_sfl.core.selection import FixedSchedule
from lightning_sfl.methods.base import SplitMethod

_NO_MEMORY = re.compile(r"allocate|out of memory|overflow|Maximum allowed|array is too big", re.IGNORECASE)


def rehearse(method: SplitMethod, data: Any, rounds: int) -> None:
    """Load the data, cut the network, build optimizers, walk through schedules; raises SFLError.

    Data and method are left as their own setup would leave them.

    Args:
        method: its classes' own checks have passed.
        data: a `FederatedData` or alike.
        rounds: of training; 0 for an evaluation.
    """
    check_method(method)
    data.setup("fit")
    try:
        method.prepare(data, "fit" if rounds else "validate")
    except ConfigError as error:
        network, source = type(method.backbone[0]).__name__, type(data.source).__name__
        fit = f"model.backbone={network} does not take data.source={source}"
        raise ConfigError(str(error).replace("the model does not take the data", fit)) from error
    if rounds:
        check_training(method, rounds)


def check_method(method: SplitMethod) -> None:
    """Refuse a method that has not said what its server does."""
    steps = ("serve", "local_step", "train_round", "training_step")
    filled = any(getattr(type(method), step) is not getattr(SplitMethod, step) for step in steps)
    name = type(method).__name__
    require(filled, "model", name, f"{name} has no serve(); known: {kind_of('model').listed()}")


def check_training(method: SplitMethod, rounds: int) -> None:
    """Build the optimizers, and walk their schedules and a fixed list of participants through all rounds."""
    for key, count in (("local_epochs", method.work.local_epochs), ("local_steps", method.work.local_steps)):
        require(count is None or count <= MOST, key, count, f"at most {MOST:,}: a round is planned as a whole")
    for role, parameters in method.trained().items():
        _, schedule = method.build_optimizer(role, parameters)
        if schedule is not None:
            rehearse_schedule(f"{role}_scheduler", schedule, rounds)
    if isinstance(method.selection, FixedSchedule):
        for index in range(rounds):
            method.selection.select(index, method.available, method.participants, method.seed)


def check_checkpoint(method: SplitMethod, path: Path | None, rounds: int, resumed: str | None = None) -> None:
    """Read the checkpoint, if there is one, and compare it with the run.

    Args:
        method: has been cut.
        path: of the checkpoint; None for none.
        rounds: of training, 0 for an evaluation.
        resumed: folder of the run from which the checkpoint was to come; to judge it wants one.
    """
    if path is None:
        allowed = "a run with a good checkpoint, and this one has none yet"
        require(rounds > 0 or resumed is None, "resume", resumed, allowed)
        return
    require(path.is_file(), "ckpt_path", str(path), "a checkpoint file; to go on with a run: --resume and its folder")
    try:
        checkpoint = DurableCheckpointIO().load_checkpoint(path)
        method.check_signature(checkpoint, training=rounds > 0)
    except CheckpointError as error:
        raise CheckpointError(f"ckpt_path={str(path)!r} is not allowed: {error}") from error
    if rounds:
        check_rates(method, checkpoint["optimizer_states"])
    finished = checkpoint.get("epoch", -1) + 1
    enough = not rounds or rounds >= finished
    require(enough, "trainer.max_epochs", rounds, f"{finished} or more: so many rounds has the checkpoint behind it")


def check_rates(method: SplitMethod, states: list[dict[str, Any]]) -> None:
    """A schedule goes on from the learning rate that it had reached, so it must have started from this run's."""
    for (role, parameters), state in zip(method.trained().items(), states, strict=True):
        optimizer, schedule = method.build_optimizer(role, parameters)
        for fresh, group in zip(optimizer.param_groups, state["param_groups"], strict=True):
            first = group.get("initial_lr")
            same = schedule is None or first == fresh["initial_lr"]
            require(same, f"{role}_optimizer.lr", fresh["lr"], f"{first}, from which the checkpoint's schedule began")


def check_folder(path: str | None, key: str = "trainer.default_root_dir") -> None:
    """Make a folder for results and see that it can be written to."""
    if not path:
        raise ConfigError(f"{key}={path!r} is not allowed: a folder")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        allowed = f"a folder that can be written to ({error.strerror or error})"
        raise ConfigError(f"{key}={path!r} is not allowed: {allowed}") from error


@contextmanager
def plain_errors(settings: Namespace, constructors: bool = False) -> Iterator[None]:
    """Turn what the user has to mend into a ConfigError with dotted keys; other errors come out as they were raised.

    Args:
        settings: of the command.
        constructors: whether a ValueError is the user's as well: so do classes refuse their arguments.
    """
    try:
        yield
    except (SFLError, ValueError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
        root = original(error)
        if isinstance(root, SFLError):
            place = "data." if re.match(r"(source|partition) ", str(root)) else ""
            raise ConfigError(place + dotted(one_line(root), settings)) from error
        if isinstance(root, MemoryError) or _NO_MEMORY.search(str(root)):
            raise ConfigError(
                f"{largest(settings)} is not allowed: too large for this machine ({one_line(root)})"
            ) from error
        if constructors and isinstance(root, (ValueError, MisconfigurationException)):
            raise ConfigError(blamed(root, settings)) from error
        raise root from root.__cause__  # a parser's wrapper around it would hide the place


def largest(settings: Namespace) -> str:
    """The largest whole number among the settings, with its key."""
    sizes = {path: value for path, value in settings.items() if type(value) is int}
    key = max(sizes, key=lambda path: sizes[path])
    return f"{key.replace('.init_args', '')}={sizes[key]}"


def dotted(text: str, settings: Namespace) -> str:
    """The text of an error with the key at its front spelled out: `model.local_epochs` for `local_epochs`."""
    found = re.match(r"([\w.]+)(?:=(.*?))? is not allowed: ", text)
    if found is None:
        return text
    key, value = found[1], found[2]
    places = {path.replace(".init_args", ""): setting for path, setting in settings.items(branches=True)}
    named = [path for path in places if path == key or path.endswith(f".{key}")]
    exact = [path for path in named if repr(places[path]) == value]
    return f"{(exact or named or [key])[0]}{text[len(key) :]}"


def blamed(error: BaseException, settings: Namespace) -> str:
    """The text of a constructor's error, with the class that refused where the text names no setting."""
    text = dotted(one_line(error), settings)
    if re.match(r"[\w.]+(=.*)? is not allowed: ", text):
        return text
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "__init__"]
    names = [type(frame.f_locals["self"]).__name__ for frame in frames]
    name = next((name for name in reversed(names) if not name.startswith("_")), "")
    named = [path.rpartition(".")[0] for path, value in settings.items() if name and str(value).endswith(f".{name}")]
    if named:
        return f"{named[0].replace('.init_args', '')}={name} is not allowed: {text}"
    return f"{name.replace('CommandTrainer', 'trainer')}: {text}".removeprefix(": ")
