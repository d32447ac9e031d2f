"""What paths on the command line mean: configs that come with the package, and folders of earlier runs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from lightning_sfl.core.errors import require


def resolved(arguments: Sequence[str]) -> list[str]:
    """Arguments in which packaged configs and runs to resume are spelled out as files."""
    spelled = separated(arguments)
    for place, argument in enumerate(spelled[:-1]):
        if argument in ("--config", "-c"):
            spelled[place + 1] = config_file(spelled[place + 1])
        elif argument == "--resume":
            folder = run_folder(spelled[place + 1])
            spelled[place + 1] = str(folder)
            return [spelled[0], "--config", str(folder / "config.yaml"), *spelled[1:]]
    return spelled


def separated(arguments: Sequence[str]) -> list[str]:
    """`--config=x` as two arguments, `--config` and `x`; likewise for `--resume`."""
    pieces: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        pieces += [option, value] if equals and option in ("--config", "-c", "--resume") else [argument]
    return pieces


def config_file(path: str) -> str:
    """The file itself, or the config of this name that was installed with the package (`configs/methods/sfl.yaml`)."""
    packaged = Path(str(files("lightning_sfl.configs"))) / path.removeprefix("configs/")
    return path if Path(path).exists() or not packaged.is_file() else str(packaged)


def run_folder(path: str) -> Path:
    """A run's folder, or the newest run below a folder of runs."""
    runs = sorted(Path(path).glob("**/config.yaml"), key=lambda config: config.stat().st_mtime)
    require(bool(runs), "resume", path, "the folder of a run, which holds its config.yaml, or a folder of runs")
    return Path(path) if (Path(path) / "config.yaml").is_file() else runs[-1].parent
