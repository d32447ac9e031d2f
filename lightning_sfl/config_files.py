"""Configs as files: refused in one line when they cannot be read, or hold what the parser would drop in silence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

import lightning_sfl.methods
from lightning_sfl.config_errors import no_setting
from lightning_sfl.config_words import one_line
from lightning_sfl.core.errors import ConfigError, require


def check_files(arguments: Sequence[str], options: Sequence[str]) -> None:
    """Read the configs named on the command line and refuse what the parser would take in silence or fail over.

    Args:
        arguments: as typed, `--config` and its file being two of them.
        options: dotted names of all settings.
    """
    for option, value in pairwise(arguments):
        if option in ("--config", "-c"):
            content = read_config(value)
            if options:
                check_sections(content, value, options)
    for argument in arguments:
        if re.match(r"--model(\.init_args)?\.seed\b", argument):
            raise ConfigError("model.seed is not a setting of its own: give seed_everything, from which it follows")


def read_config(path: str) -> dict[str, Any]:
    """The content of a config file; nothing in it is executed."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config={path!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config={path!r} is not allowed: a text file in YAML; this one is binary") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"config={path!r} is not YAML: {one_line(error)}") from error
    require(content is not None, "config", path, "a file with settings; this one is empty")
    require(isinstance(content, dict), "config", path, f"settings as `key: value`, not a {type(content).__name__}")
    require("grid" not in content, "config", path, "settings of one run; this is a sweep: train.py sweep --config")
    return content  # type: ignore[no-any-return]


def check_sections(content: Mapping[Any, Any], path: str, options: Sequence[str]) -> None:
    """Refuse unknown names without content, and sections that are no sections: the parser drops both in silence."""
    where = f" (in {path})"
    sections = {name.split(".")[0] for name in options if "." in name}
    for key, value in content.items():
        if key not in sections and key not in options:
            raise ConfigError(no_setting(str(key), options, where))
        if key in sections:
            require(isinstance(value, dict), str(key), value, f"settings as `name: value` below it{where}")
            for name in value:
                if f"{key}.{name}" not in options:
                    raise ConfigError(no_setting(f"{key}.{name}", options, where))
    for key, part in parts_of(content):
        arguments, name = part.get("init_args", {}), part.get("class_path", "")
        require(isinstance(arguments, dict), f"{key}.init_args", arguments, f"settings as `name: value`{where}")
        require(isinstance(name, str), f"{key}.class_path", name, f"the name of a class{where}")
    check_model(content.get("model"), content.get("seed_everything"), path)


def check_model(model: Any, run_seed: Any, path: str) -> None:
    """Options of the model that the parser drops: unknown ones without content, and a seed beside that of the run."""
    settings = model.get("init_args", model) if isinstance(model, dict) else {}
    if "seed" in settings and settings["seed"] != run_seed:
        raise ConfigError(
            f"model.seed={settings['seed']!r} is not a setting of its own (in {path}): give seed_everything"
        )
    classes = [getattr(lightning_sfl.methods, name) for name in lightning_sfl.methods.__all__]
    constructors = {base.__init__ for cls in classes for base in cls.__mro__ if "__init__" in vars(base)}
    known = {"class_path", "init_args", "dict_kwargs"}.union(*(inspect.signature(c).parameters for c in constructors))
    known -= {"self", "args", "kwargs"}
    own = "." in str(model.get("class_path", "")) if isinstance(model, dict) else True
    for name, value in settings.items():
        if value == {} and name not in known and not own:
            raise ConfigError(no_setting(str(name), sorted(known), f" below model (in {path})"))


def parts_of(content: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in a config that names a class or its arguments, with its dotted key."""
    if isinstance(content, Mapping):
        if "class_path" in content or "init_args" in content:
            yield key, content
        for name, value in content.items():
            yield from parts_of(value, key if name == "init_args" else f"{key}.{name}".lstrip("."))


class RunConfig(SaveConfigCallback):
    """A run's config.yaml, which any command can take up: without what only some have, unless it was given."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        kept = config.clone()
        for key in ("ckpt_path", "weights_only"):
            if kept.get(key) is None:
                kept.pop(key, None)
        super().__init__(parser, kept, **options)
