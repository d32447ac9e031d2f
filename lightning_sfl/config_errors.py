"""Turns a parser's nested complaints into one line that names the key, the value and what is allowed.

jsonargparse wraps what happened in layers (class in class in option), each the cause of the one around it. The layers
give the dotted key, the innermost one the reason.
"""

from __future__ import annotations

import argparse
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from lightning_sfl.class_names import Kind, kind_of
from lightning_sfl.config_checks import TRAINER
from lightning_sfl.config_words import causes, one_line, original, readable, shortened, shown
from lightning_sfl.core.errors import SFLError, nearest
from lightning_sfl.foreign_options import no_meaning

LIGHT_COMMANDS = ("sweep", "compare", "gradients", "doctor")  # which this parser never meets


class RefusedOptions(argparse.ArgumentError):
    """A complaint about the options of one class, with the names of those that it has."""

    def __init__(self, message: str, known: Iterable[str]) -> None:
        super().__init__(None, message)
        self.known = list(known)


def explain(message: str, error: Exception | None, parser: argparse.ArgumentParser) -> str:
    """What the parser complains about, in one line."""
    chain = causes(error)
    key = ".".join(keys_of(chain))
    root = original(error) if error is not None else None
    reason = message if root is None else str(root)
    if isinstance(root, SFLError):
        return one_line(root)
    for pattern, say in _REASONS:
        found = pattern.search(reason)
        if found:
            return " ".join(say(found, key, Complaint(chain, message, parser)).split())
    return class_problem(key, chain) or shortened(" ".join(f"{key}: {reason}".removeprefix(": ").split()), 300)


def keys_of(chain: Sequence[BaseException]) -> list[str]:
    """Names of the options on the way in; what an inner parser says is repeated by the ArgumentError around it."""
    found = [
        re.match(r'Parser key "([^"]+)"', str(link)) for link in chain if not isinstance(link, argparse.ArgumentError)
    ]
    return [name for name, _ in groupby(match[1] for match in found if match)]


class Complaint:
    """What else a line may need: the layers, the parser's own words, and the options that are known."""

    def __init__(self, chain: Sequence[BaseException], message: str, parser: argparse.ArgumentParser) -> None:
        self.chain, self.message, self.parser = chain, message, parser

    @property
    def commands(self) -> dict[str, argparse.ArgumentParser]:
        """Name and parser of every command."""
        actions = [action for action in self.parser._actions if isinstance(action, argparse._SubParsersAction)]
        return dict(actions[0]._name_parser_map) if actions else {}

    @property
    def known(self) -> list[str]:
        """Options of the class that is spoken of, or of the command."""
        inner = [link.known for link in self.chain if isinstance(link, RefusedOptions)]
        if inner:
            return inner[-1]
        parsers = list(self.commands.values()) or [self.parser]
        return sorted({name for parser in parsers for name in options_of(parser)})


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Names of a parser's settings, dotted where they are nested; the heads of sections are none."""
    hidden = ("help", "config", "print_config")
    names = [action.dest for action in parser._actions if action.option_strings]
    names = [name for name in names if name.rpartition(".")[2] not in hidden]
    sections = {name.rpartition(".")[0] for name in names}
    return [name for name in names if name not in sections]


# --- what the reasons mean --------------------------------------------------------------------------------------------


def unknown_option(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """No option of that name, or of another method; those of a class are known without the key that leads to it."""
    prefix = f"{key}." if key else ""
    known = [prefix + name for name in complaint.known]
    return foreign(found[1], key, complaint) or no_setting(prefix + found[1], known)


def foreign(name: str, key: str, complaint: Complaint) -> str | None:
    """What to say of an option below `model` that only other methods have."""
    return no_meaning(name, complaint.known, value_of(complaint.chain) or "this method") if key == "model" else None


def no_setting(name: str, known: Sequence[str], where: str = "") -> str:
    """There is no setting of that name: the nearest one, and what there is in the same section."""
    section, _, last = name.rpartition(".")
    inside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    heads = sorted({other.split(".")[0] for other in known})
    names = list(inside) if section and inside else heads
    near = re.match("did you mean (.*)[?]", nearest(last, names) if names != heads else nearest(name, [*names, *known]))
    meant = f"; did you mean {inside.get(near[1], near[1])}?" if near else ""
    if near and len(names) > 20:
        return f"no setting called {name!r}{where}{meant}"
    if not known:
        return f"no setting called {name!r}{where}: there are none"
    return f"no setting called {name!r}{where}{meant or ';'} known: {shortened(', '.join(names), 700)}"


def unrecognized(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """Options of the command line that nobody takes."""
    options = [word for word in found[1].split() if word.startswith("-")]
    if not options:
        return f"{found[1].split()[0]!r} is not understood: settings are given as --name value"
    name = options[0].lstrip("-").split("=")[0].rstrip("+")
    return foreign(name, key, complaint) or no_setting(name, complaint.known)


def missing(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """Settings without a default that were not given."""
    names = [name.strip().split(".", 1)[-1] if not key else f"{key}.{name.strip()}" for name in found[1].split(",")]
    if names == ["model"]:
        return (
            f"model is missing: --config configs/methods/sfl.yaml, or --model with one of {kind_of('model').listed()}"
        )
    verb = "are" if len(names) > 1 else "is"
    return f"{', '.join(names)} {verb} missing: set in a config, or as {' '.join(f'--{name} ...' for name in names)}"


def unknown_command(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """No command of that name."""
    names = [*complaint.commands, *LIGHT_COMMANDS]
    return f"no command called {found[1]!r}; {nearest(found[1], names)}known: {', '.join(names)}"


def no_command(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """A command line without a command."""
    return f"no command given: one of {', '.join([*complaint.commands, *LIGHT_COMMANDS])}; --help explains them"


def wrong_type(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """A value of a type that the setting does not take; where several are taken, the layer around lists them."""
    around = [str(link) for link in complaint.chain if str(link).startswith("Does not validate against any")]
    inner = len(complaint.chain) > 1 and str(complaint.chain[-2]) in around
    listed = re.search(r"Subtypes: \[(.*)\]\n", around[-1]) if inner else None
    given = re.search(r"Given value: (.*)", around[-1], re.DOTALL) if inner else None
    needed = re.search(r"arguments are required: (.*)", around[-1]) if inner else None
    if needed:
        return missing(needed, key, complaint)
    if inner and "dot import path" in around[-1] and kind_of(key).names():
        return no_class(given[1] if given else found[2], key)
    ours = TRAINER.get(key.removeprefix("trainer."))
    allowed = ours[1] if ours else readable(listed[1] if listed else found[1])
    return f"{key}={shown(given[1] if given else found[2])} is not allowed: {allowed}"


def no_section(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """A word in the place of a group of settings."""
    return f"{key}={found[1]!r} is not allowed: settings as `name: value` below it, or a file that holds them"


def out_of_range(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """A number outside the range that its type stands for."""
    return f"{key}={found[1]} is not allowed: a number {found[2].replace('v', '').strip()}"


def linked(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """A setting that follows from another one."""
    return f"{found[1]} is not a setting of its own: give {found[2]}, from which it follows"


def unknown_class(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """A short name that no class has."""
    return no_class(found[1], key)


def no_class(name: str, key: str) -> str:
    """The nearest short name, and all there are."""
    kind = kind_of(key)
    line = f"no {kind.noun} called {name!r}; {nearest(name, kind.names())}{remedy(kind)}"
    return f"{key}: {line}" if key else line


def not_a_class(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """Something that is there, but is no class of the kind that is wanted."""
    kind, ahead = kind_of(key), re.search(r"NestedArg\(key='(\w+)'", complaint.message)
    if ahead:
        return f"{key}.{ahead[1]} is an option of a class, and none is chosen: give {key} before it; {remedy(kind)}"
    given = re.match(r"(?s)Not a valid subclass of \w+\. Got value: (.*)\nSubclass types", str(complaint.chain[-1]))
    named = given[1] if given else value_of(complaint.chain)
    why = f"{named} is {found[1]}" if found[1] else f"that is no {kind.noun}"
    return f"{key}={shown(named)} is not allowed: {why}; {remedy(kind)}"


def ambiguous(found: re.Match[str], key: str, complaint: Complaint) -> str:
    """A short name that several classes have."""
    return f"{key}={found[1]!r} is not allowed: several classes have this name; give one of {found[2].rstrip('.')}"


def remedy(kind: Kind) -> str:
    """What can be given instead."""
    names = kind.listed()
    return f"{f'known: {names}; ' if names else ''}a class of your own: give its import path"


def class_problem(key: str, chain: Sequence[BaseException]) -> str | None:
    """A class whose module could not be imported, with the place where that went wrong."""
    named = value_of(chain)
    if not key or named is None or not chain:
        return None
    root = chain[-1]
    frames = traceback.extract_tb(root.__traceback__)
    own = [frame for frame in frames if "jsonargparse" not in frame.filename and "importlib" not in frame.filename]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{key}={shown(named)} cannot be imported: {type(root).__name__}: {one_line(root)}{where}"


def value_of(chain: Sequence[BaseException]) -> str | None:
    """The class path that was asked for."""
    pattern = re.compile(
        r"Expected a path but (\S+) either|given class_path '([^']+)'|'class_path': '([^']+)'|value: ([\w.]+)"
    )
    found = next(filter(None, (pattern.search(str(link)) for link in reversed(chain))), None)
    return None if found is None else next(group for group in found.groups() if group)


_REASONS: list[tuple[re.Pattern[str], Callable[[re.Match[str], str, Complaint], str]]] = [
    (re.compile(r"does not accept option '(.+)'"), unknown_option),
    (re.compile(r"Option '(.+?)' is not accepted"), unknown_option),
    (re.compile(r"^unrecognized arguments: (.*)", re.DOTALL), unrecognized),
    (re.compile(r"arguments are required: (.*)"), missing),
    (re.compile(r"invalid choice: '(.*?)'"), unknown_command),
    (re.compile(r'^expected "subcommand"'), no_command),
    (re.compile(r'^Linked "(.+)" must be given via "(.+)"'), linked),
    (re.compile(r"Unable to load config \"(.*)\"$"), no_section),
    (re.compile(r"^(.*) does not conform to restriction (.*)"), out_of_range),
    (re.compile(r"^Expected a dot import path string: (.*)"), unknown_class),
    (re.compile(r"^Multiple subclasses with name (\w+)\..*ambiguity: (.*)"), ambiguous),
    (re.compile(r"(?:^Import path .*does not correspond|Expected '.*' to be|^Not a valid subclass of)()"), not_a_class),
    (re.compile(r"^Expected an instantiatable class, but .* is (abstract|a protocol)"), not_a_class),
    (re.compile(r"^Expected a (.*?)\. Got value: (.*)", re.DOTALL), wrong_type),
]
