"""An option that the chosen method lacks and others have: who has it, and why it means nothing where it was given."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from functools import cache

from jsonargparse import ArgumentParser

from lightning_sfl.class_names import kind_of
from lightning_sfl.config_words import shortened

_NO_ROUNDS = "it is about clients that come and go one by one, and in {} they take part by rounds"
_NO_SERVER = "it is about training a server half, and {} has none"
_NO_STEPS = "it is about steps that clients take by themselves, and in {} they take none"
_NO_PULL = "it draws steps back to where the round began, and in {} nothing draws them back"
_NO_META = "it is about the gradient after a step of adaptation in training, and {} takes none"
_NO_PARTING = "it says when a cluster of clients is divided, and {} divides none"
# Each has to hold for every method without the option. What is not here is told by its own help.
_REASONS = {
    "staleness": "it weighs updates that come late, and in {} none outlives its round or all count in full",
    "max_staleness": "it drops updates that come late, and in {} none outlives its round",
    "mixing": "it is the share of a client that is mixed in alone, and {} mixes in none",
    "arrivals": "it is how many clients, mixed in one by one, make a round, and {} mixes in none",
    "model_buffer": "it is how many clients that come one by one are collected for a merge, and {} collects none",
    **dict.fromkeys(("participation", "arrival", "client_momentum"), _NO_ROUNDS),
    "clusters": "it is the number of networks that clients choose among, and in {} they choose none",
    "restart": "it shuffles the starts of several networks, and {} has one start",
    **dict.fromkeys(("eps1", "eps2"), _NO_PARTING),
    "adapt_lr": "it is the rate of a step of adaptation in training, and {} takes none (to adapt what was merged: "
    "client_metrics.adapt_lr)",
    **dict.fromkeys(("variant", "delta"), _NO_META),
    "rate": "it is how far the network goes towards the clients' mean, which {} has as the lr of merge_optimizer SGD "
    "or not at all",
    "anneal_rounds": "it lets Reptile's rate fall, and {} has no such rate",
    **dict.fromkeys(("prox_mu", "prox_server"), _NO_PULL),
    **dict.fromkeys(("server_optimizer", "server_scheduler", "server_clip"), _NO_SERVER),
    **dict.fromkeys(
        ("client_optimizer", "client_scheduler", "client_clip", "batch_size", "local_epochs", "local_steps"), _NO_STEPS
    ),
    "weighting": "it is a client's weight among those that are averaged, and in {} all count alike",
}


def no_meaning(name: str, known: Iterable[str], method: str) -> str | None:
    """The line about an option of other methods; None where no method has it, so that it may be a slip of the pen.

    Args:
        name: as given below `model`, dotted where it goes on.
        known: options of the method, dotted in the same way.
        method: its import path or short name.
    """
    option, short = head(name).rstrip("+"), method.rpartition(".")[2]
    owners = {} if option in {head(each) for each in known} else owners_of(option)
    if not owners:
        return None
    have = f"; {named(owners)} {'has' if len(owners) == 1 else 'have'} it"
    line = f"model.{option} has no meaning for {short}"
    if option in _REASONS:
        return f"{line}: {_REASONS[option].format(short)}{have}"
    helped = shortened(next(iter(owners.values())).rstrip("."), 200)
    return f"{line}{have}{f': {helped}' if helped else ''}"


def head(name: str) -> str:
    """What stands before the first dot."""
    return name.partition(".")[0]


def named(owners: Collection[str]) -> str:
    """The methods in words; those that lack the option, where these are fewer."""
    others = [name for name in kind_of("model").names() if name not in owners]
    names = sorted(owners) if len(owners) <= len(others) else others
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return listed if names != others else f"all methods but {listed}"


def owners_of(option: str) -> dict[str, str]:
    """Short names of the methods that take an option, as their signatures say, and what their help says of it."""
    kind = kind_of("model")
    found: dict[str, str] = {}
    for name in kind.names():
        method = next(getattr(module, name) for module in kind.modules if hasattr(module, name))
        constructors = (vars(base)["__init__"] for base in method.__mro__[:-1] if "__init__" in vars(base))
        if any(option in inspect.signature(each).parameters for each in constructors):
            texts = helps_of(method)  # takes a while; one that binds what its base takes does not have it itself
            found |= {name: texts[option]} if option in texts else {}
    return found


@cache
def helps_of(method: type) -> dict[str, str]:
    """The arguments that a constructor takes, those that it hands on to its bases among them, and their help."""
    parser = ArgumentParser(exit_on_error=False)
    taken = parser.add_class_arguments(method, fail_untyped=False)
    helps = {action.dest: action.help for action in parser._actions}
    helps |= {name: group.title for name, group in (parser.groups or {}).items()}  # of options below an option
    return {name: " ".join(str(helps.get(name) or "").split()) for name in taken}
