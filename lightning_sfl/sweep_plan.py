"""What a sweep is to train: a YAML file's grid and seeds, spelled out as one `fit` command per run.

base: [configs/experiments/demo.yaml]          files every run starts from
grid:                                          every combination is a run
  model: [SFL, MiniBatchSFL, mine.yaml]        classes, or files of settings
  data.partition.alpha: [0.1, 1.0]             any option of `fit`
seeds: [0, 1, 2]                               each combination once per seed
options: {trainer.max_epochs: 30}              for all runs
out: runs/my_sweep                             where the runs' folders go
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_sfl.arguments import config_file
from lightning_sfl.core.errors import ConfigError, nearest, require

ROUNDS = "trainer.max_epochs"
RESERVED = {"seed_everything": "seeds", "trainer.default_root_dir": "out", "resume": "nothing", "ckpt_path": "nothing"}


@dataclass(frozen=True)
class Point:
    """One run: its folder's name, and what follows `fit` on its command line (the folder is left out)."""

    name: str
    arguments: tuple[str, ...]
    rounds: int | None

    @property
    def digest(self) -> str:
        """Changes with any setting but the rounds, and with any byte of config files and of files with own classes."""
        parts = [a for a in self.arguments if not a.startswith(f"--{ROUNDS}=")]
        parts += [Path(a).read_text(encoding="utf-8") for a in self.arguments if is_file(a) and Path(a).is_file()]
        parts += [path.read_text(encoding="utf-8") for path in own_files(parts)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass
class Sweep:
    """The parts of a sweep file, checked as they are put in."""

    base: list[str] = field(default_factory=list)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    options: dict[str, Any] = field(default_factory=dict)
    out: str | None = None

    def __post_init__(self) -> None:
        self.base = [found_file(path, "base") for path in entries(self.base, "base", some=False)]
        require(isinstance(self.grid, dict), "grid", self.grid, "options and lists of values")
        self.grid = {key: entries(values, f"grid.{key}") for key, values in self.grid.items()}
        for seed in entries(self.seeds, "seeds"):
            good = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32
            require(good, "seeds", seed, "integers from 0 to 2**32 - 1")
        require(isinstance(self.options, dict), "options", self.options, "options and their values")
        require(self.out is None or isinstance(self.out, str), "out", self.out, "a folder")
        require(bool(self.base or self.grid), "base", self.base, "config files, unless grid names some")

    def points(self) -> list[Point]:
        """All runs, seed by seed, so that one run of everything is there early."""
        arms = [self._arm(chosen) for chosen in itertools.product(*self.grid.values())]
        names = [name for name, _ in arms]
        twins = {name for name, count in Counter(names).items() if count > 1}
        found = []
        for seed in self.seeds:
            for name, settings in arms:
                arguments = (*command_line(self.base, settings), f"--seed_everything={seed}")
                own = f"{name}-{short_hash(settings)}" if name in twins else name
                folder = "-".join(part for part in (own, f"seed{seed}") if part)
                found.append(Point(folder, arguments, rounds_of([*self.base, *files_in(settings)], settings)))
        return found

    def _arm(self, chosen: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
        """Name and settings of one combination; options are for all, and what the grid says goes before them."""
        settings: dict[str, Any] = {}
        for key, value in zip(self.grid, chosen, strict=True):
            for name, given in (value if isinstance(value, dict) else {key: value}).items():
                check_key(str(name))
                require(name not in settings, f"grid.{key}", name, "one value for each option")
                settings[str(name)] = given
        for name, given in self.options.items():
            check_key(str(name))
            require(name not in settings, f"options.{name}", given, "an option the grid does not vary")
        name = "-".join(spoken(key, value) for key, value in zip(self.grid, chosen, strict=True))
        return name, {**settings, **{str(k): v for k, v in self.options.items()}}


def read_sweep(path: str) -> dict[str, Any]:
    """The parts of a sweep file; ConfigError with one line where it is not one."""
    file = Path(config_file(path))
    require(file.is_file(), "config", path, "an existing sweep file")
    try:
        parts = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    known = list(Sweep.__dataclass_fields__)
    require(isinstance(parts, dict), "config", path, f"a sweep file with {', '.join(known)}")
    for key in parts:
        if key not in known:
            raise ConfigError(f"{path}: {key} is not known: {nearest(str(key), known)}it may hold {', '.join(known)}")
    return {key: value for key, value in parts.items() if value is not None}


def entries(values: Any, key: str, some: bool = True) -> list[Any]:
    """A list without repetitions; one value alone stands for itself."""
    listed = list(values) if isinstance(values, list) else [values]
    require(bool(listed) or not some, key, values, "at least one value")
    shown = [json.dumps(value, sort_keys=True, default=str) for value in listed]
    require(len(set(shown)) == len(shown), key, values, "each value once")
    return listed


def check_key(name: str) -> None:
    """Refuse options that the sweep sets itself."""
    instead = RESERVED.get(name)
    require(instead is None, "option", name, f"the sweep sets it; use {instead} in the sweep file")
    require(bool(re.fullmatch(r"[A-Za-z_][\w.]*", name)), "option", name, "an option of fit, such as model.batch_size")


def is_file(value: Any) -> bool:
    """Whether a value names a config file rather than a class or a number."""
    return isinstance(value, str) and value.endswith((".yaml", ".yml"))


def own_files(texts: Iterable[str]) -> list[Path]:
    """Python files in the working folder out of which these settings take a class, as in `model=mine.Mine`."""
    named = [
        found for text in texts for found in re.findall(r"(?:=|class_path: *|: +)[\"']?([A-Za-z_][\w.]*)\.\w+", text)
    ]
    files = [Path(*name.split(".")).with_suffix(".py") for name in dict.fromkeys(named)]
    return [file for file in files if file.is_file()]


def files_in(settings: Mapping[str, Any]) -> list[str]:
    """Config files among the settings, where they lie."""
    return [found_file(value, key) for key, value in settings.items() if is_file(value) and key in ("model", "config")]


def found_file(path: Any, key: str) -> str:
    """The file, or the packaged config of this name."""
    require(isinstance(path, str) and Path(config_file(path)).is_file(), key, path, "an existing config file")
    return config_file(path)


def command_line(base: Iterable[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Files first, then options from the outside in, since choosing a class comes before its own options."""
    words = [word for path in [*base, *files_in(settings)] for word in ("--config", path)]
    options = {k: v for k, v in settings.items() if not (is_file(v) and k in ("model", "config"))}
    return (*words, *(f"--{key}={written(options[key])}" for key in sorted(options, key=lambda key: key.count("."))))


def written(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def rounds_of(files: Iterable[str], settings: Mapping[str, Any]) -> int | None:
    """How many rounds the settings ask for; None where they leave it to the default."""
    found = None
    for path in files:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        found = (document.get("trainer") or {}).get("max_epochs", found)
    found = settings.get(ROUNDS, found)
    require(found is None or (isinstance(found, int) and found >= 1), ROUNDS, found, "an integer >= 1")
    return found


def spoken(key: str, value: Any) -> str:
    """A value in a folder's name: classes and files by their own name, others behind the last word of their option."""
    if isinstance(value, dict):
        return "-".join(spoken(str(name), given) for name, given in value.items())
    text = Path(value).stem if is_file(value) else written(value)
    short = text.rpartition(".")[2] if re.fullmatch(r"[A-Za-z_][\w.]*", text) else text
    plain = key in ("model", "config") or (isinstance(value, str) and (short != text or text[:1].isupper()))
    return re.sub(r"[^\w.+=]+", "_", short if plain else f"{key.rpartition('.')[2]}={short}").strip("_")


def short_hash(settings: Mapping[str, Any]) -> str:
    """Four hex digits that tell settings apart which sound alike."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:4]
