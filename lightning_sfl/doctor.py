"""Looks at the installation and says, line by line, what is in order and what to do about the rest.

Only the standard library is imported at the top, so that `python -m lightning_sfl.doctor` speaks even where torch or
Lightning cannot be imported.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

COMPROMISED = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
NEEDED = {"torch": (2, 4), "lightning": (2, 6), "jsonargparse": (4, 39), "torchmetrics": (1, 0), "numpy": (1, 23)}
EXTRAS = {
    "tensorboard": ("curves", "tensorboard"),
    "matplotlib": ("pictures", '"lightning_sfl[report]"'),
    "pyarrow": ("data in parquet files", '"lightning_sfl[data]"'),
    "pillow": ("images in parquet files", '"lightning_sfl[data]"'),
    "opacus": ("privacy accounts", '"lightning_sfl[privacy]"'),
    "datasets": ("data from the hub", '"lightning_sfl[data]"'),
}
DIGITS_SHA256 = "c65ca29fb9866509efc7e07c7d5574265777f287c088a0b24503488218f75a6d"
LEAST_FREE_BYTES = 10**9
FAILURES = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class Finding(NamedTuple):
    """One line of the report; a problem makes the exit code 1."""

    state: Literal["ok", "warning", "problem"]
    text: str


def main(arguments: Sequence[str]) -> int:
    """The command, which has no options; its exit code."""
    from lightning_sfl.plain_parser import PlainParser

    about = "Look at the installation; say what is in order and what to do about the rest. 1 if there is a problem."
    PlainParser("doctor", about).parse_args(arguments)
    return examine()


def examine() -> int:
    """Print every finding; 0, or 1 if there is a problem."""
    worst = 0
    for look in (packages, extras, torchvision, hardware, safe_loading, digits, runs_folder, smoke_run):
        for finding in look():
            print(f"{finding.state:<8} {finding.text}", flush=True)
            worst = max(worst, int(finding.state == "problem"))
    return worst


def installed(package: str) -> str | None:
    """The version of a package, from its metadata alone: nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def packages() -> Iterator[Finding]:
    """Versions of Python and of what cannot be done without."""
    yield Finding("ok", f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package, least in NEEDED.items():
        version = installed(package)
        wanted = ".".join(map(str, least))
        if version is None:
            yield Finding("problem", f"{package} is missing: pip install '{package}>={wanted}'")
        elif release(version) < least:
            yield Finding("problem", f"{package} {version} is too old: pip install '{package}>={wanted}'")
        elif version not in COMPROMISED.get(package, ()):
            yield Finding("ok", f"{package} {version}")
    yield from compromised()


def compromised() -> Iterator[Finding]:
    """Releases that carried code of others."""
    for package, versions in COMPROMISED.items():
        version = installed(package)
        if version in versions:
            act = "uninstall it, install another version, and change the passwords and keys that this machine holds"
            yield Finding("problem", f"{package} {version} was a compromised release: {act}")


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 6) of 2.6.1+cpu."""
    numbers = version.split("+", maxsplit=1)[0].split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, number)) or 0) for number in numbers)


def extras() -> Iterator[Finding]:
    """Packages that some commands want."""
    for package, (purpose, install) in EXTRAS.items():
        version = installed(package)
        if version is None:
            yield Finding("warning", f"{package} is missing, which {purpose} need: pip install {install}")
        else:
            yield Finding("ok", f"{package} {version}, for {purpose}")


def torchvision() -> Iterator[Finding]:
    """A torchvision built for another torch breaks torchmetrics and Lightning when they look for it."""
    version = installed("torchvision")
    if version is None:
        yield Finding("ok", "torchvision is not installed, and not needed")
        return
    tried = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=120, check=False
    )
    if tried.returncode == 0:
        yield Finding("ok", f"torchvision {version} imports beside torch {installed('torch')}")
        return
    reason = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
    act = "pip uninstall torchvision: nothing here needs it, and Lightning stumbles over it"
    yield Finding(
        "problem", f"torchvision {version} does not import beside torch {installed('torch')} ({reason}): {act}"
    )


def hardware() -> Iterator[Finding]:
    """The accelerator and the threads."""
    try:
        import torch
    except FAILURES as error:
        yield Finding("problem", f"torch cannot be imported ({error}): install it anew")
        return
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding(
        "ok", f"accelerator: {', '.join(names) or ('mps' if torch.backends.mps.is_available() else 'none, CPU')}"
    )
    limit = os.environ.get("OMP_NUM_THREADS", "not set")
    cpus = f"{os.cpu_count()} CPUs, OMP_NUM_THREADS {limit}"
    yield Finding("ok", f"threads: {cpus}; a run uses --threads, 1 by default, and its bits hang on that number")


def safe_loading() -> Iterator[Finding]:
    """The switch that lets files of weights run code."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if os.environ.get(name, "0").lower() in ("0", "", "false", "n", "no"):
        yield Finding("ok", f"{name} is not set")
    else:
        yield Finding("warning", f"{name} is set, so that other programs run code from checkpoints: unset {name}")


def digits() -> Iterator[Finding]:
    """The data that ship with the package."""
    file = Path(__file__).with_name("data") / "files" / "digits.npz"
    if not file.is_file():
        yield Finding("problem", "the digits are missing from the installation: install lightning_sfl anew")
    elif hashlib.sha256(file.read_bytes()).hexdigest() != DIGITS_SHA256:
        yield Finding("problem", "the digits that ship with the package are damaged: install lightning_sfl anew")
    else:
        yield Finding("ok", "digits: as published")


def runs_folder() -> Iterator[Finding]:
    """Where runs are recorded by default."""
    folder = Path("runs").resolve()
    place = folder if folder.exists() else folder.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        act = "give another folder by --trainer.default_root_dir"
        yield Finding("problem", f"{folder} cannot be written to ({error.strerror}): {act}")
        return
    if free < LEAST_FREE_BYTES:
        yield Finding("warning", f"{folder}: only {free / 1e6:.0f} MB are free, and every run keeps its checkpoints")
    else:
        yield Finding("ok", f"{folder} can be written to, {free / 1e9:.0f} GB free")


def smoke_run() -> Iterator[Finding]:
    """One round of SFL on made-up rows, in memory."""
    try:
        loss = one_round()
    except FAILURES as error:
        text = " ".join(str(error).split())
        yield Finding("problem", f"one round of SFL fails: {type(error).__name__}: {text}")
        return
    fine = math.isfinite(loss)
    yield Finding("ok" if fine else "problem", f"one round of SFL on made-up rows, loss {loss:.3f}")


def one_round() -> float:
    """Train; the mean loss of the round."""
    import lightning_sfl
    from lightning_sfl.backbones import MLP
    from lightning_sfl.data import IID, Synthetic

    source = Synthetic(rows=60, test_rows=10, features=[4], num_classes=3)
    data = lightning_sfl.FederatedData(source, IID(), num_clients=3)
    method = lightning_sfl.SFL(MLP(4, (8,), 3), "relu1", participants=2)
    with tempfile.TemporaryDirectory() as folder:
        pytorch = importlib.import_module("lightning.pytorch")
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = pytorch.Trainer(max_epochs=1, accelerator="cpu", devices=1, default_root_dir=folder, **quiet)
        trainer.fit(method, data)
    return float(trainer.callback_metrics["train/loss"])


if __name__ == "__main__":
    sys.exit(examine())
