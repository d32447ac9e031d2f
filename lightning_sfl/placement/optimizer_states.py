"""The client optimizer's state, where it lasts: put together from the clients' processes for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_sfl.placement.links import SharedLink
from lightning_sfl.placement.wire import read, spelled

States = dict[int, dict[str, Any]]


def complete(states: States, link: SharedLink, per_slot: int) -> States:
    """In the first process, the state of each parameter as the home of its slot has it; elsewhere, `states` as given.

    states: by number of the parameter; per_slot: parameters of one slot, which stand one after another.
    """
    own = {number: state for number, state in states.items() if link.holds(number // per_slot)}
    homes = [home for home in link.homes if home != 0]
    outgoing = {0: letter_of(own)} if link.rank in homes else {}
    letters = link.post.exchange("optimizer states", outgoing, homes if link.rank == 0 else [])
    if link.rank != 0:
        return states
    found = dict(own)
    for letter in letters.values():
        found |= states_of(letter)
    return {number: found[number] for number in sorted(found)}


def letter_of(states: Mapping[int, Mapping[str, Any]]) -> list[Tensor | None]:
    """Tensors as they are behind a table of contents in JSON, which holds the plain values."""
    tensors: list[Tensor | None] = []
    table = []
    for number, state in states.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                table.append([number, key, True, len(tensors)])
                tensors.append(value)
            else:
                table.append([number, key, False, value])
    return [spelled(table), *tensors]


def states_of(letter: Sequence[Tensor | None]) -> States:
    """What `letter_of` wrote."""
    contents, *tensors = letter
    table = [] if contents is None else read(contents)
    states: States = {}
    for number, key, is_tensor, value in table:
        states.setdefault(number, {})[key] = tensors[value] if is_tensor else value
    return states
