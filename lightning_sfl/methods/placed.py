"""What a method knows of other processes: next to nothing. It asks its link which slots are held here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_sfl.core import events
from lightning_sfl.core.cut import DIRECTIONS, KINDS, Boundary, Reply
from lightning_sfl.core.state import state_of
from lightning_sfl.methods.engine import Engine


class PlacedModule(Engine):
    """Brings states of slots that are trained elsewhere, and numbers that add up over all processes."""

    boundary: Boundary
    handed_on: bool = False  # whether clients hand optimizer state on, and so have to be trained in one process

    def owned(self, slot: int) -> list[nn.Module]:
        """What the client in this slot holds and trains itself."""
        raise NotImplementedError

    def live(self, slot: int) -> list[Tensor | None]:
        """What a client in this slot hands in at its end: the very tensors, to be overwritten by those of its home."""
        modules = [*self.owned(slot)]
        if self.link.in_parts and self.server_copies and not self.whole_on_client:
            modules.append(self.server_slots[slot])
        return [tensor for module in modules for tensor in state_of(module).values()]

    def hand_in(self, slots: Sequence[int]) -> None:
        """Have what the merge, or whoever watches, needs of these slots."""
        if self.link.in_parts:
            self.show(slots, events.ClientEnd.handler)
        else:
            self.bring(slots)

    def shown_answers(self, answers: Sequence[Reply]) -> Sequence[Reply]:
        """The answers with all their tensors, where somebody who is told events looks at them."""
        return self.link.show_answers(answers) if self.looked_at(events.CutGradient.handler) else answers

    def bring(self, slots: Iterable[int]) -> None:
        """Have the state of these slots as it is where their clients are trained."""
        if not self.link.alone:
            self.link.bring({slot: self.live(slot) for slot in slots})

    def brought(self, slot: int) -> nn.Module:
        """The client half in this slot, as it is where its client is trained."""
        self.bring([slot])
        return self.slots[slot]

    def show(self, slots: Sequence[int], handler: str) -> None:
        """Bring the state of these slots to whom events are told, if the handlers of this one look at it."""
        if not self.link.alone and self.looked_at(handler):
            self.link.show({slot: self.live(slot) for slot in slots})

    def tell_backward(self, turns: tuple[events.Turn, ...]) -> None:
        """Tell that gradients stand in `.grad`; for whoever looks at them, they stand there for a moment only."""
        shown = not self.link.alone and self.looked_at(events.ClientBackward.handler)
        if shown:
            self.link.show({turn.slot: self.gradients_here(turn.slot) for turn in turns})
        self.emit(events.ClientBackward, turns)
        for turn in turns if shown else ():
            if not self.link.holds(turn.slot):
                self.forget_gradients(self.parameters_in(turn.slot))

    def parameters_in(self, slot: int) -> list[nn.Parameter]:
        """What the client in this slot trains."""
        return [parameter for module in self.owned(slot) for parameter in self.parameters_of[module]]

    def gradients_here(self, slot: int) -> list[Tensor | None]:
        """Gradients of a slot that is held here; room for those of others."""
        parameters = self.parameters_in(slot)
        for parameter in parameters if not self.link.holds(slot) else ():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        return [parameter.grad for parameter in parameters]

    def make_room(self, slots: Iterable[int]) -> None:
        """Give the parameters of slots that are held elsewhere gradients, where those have any."""
        columns = list(zip(*(self.parameters_in(slot) for slot in slots), strict=True))
        present = self.link.add_up([sum(parameter.grad is not None for parameter in column) for column in columns])
        for column, somewhere in zip(columns, present, strict=True):
            for parameter in column:
                if somewhere and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def looked_at(self, handler: str) -> bool:
        """Whether a callback reads the halves of this event; one that only counts says so (`reads_tensors`)."""
        return any(reads(self.current_epoch) for reads in self.readers[handler])

    def traffic(self) -> dict[tuple[str, str], int]:
        """What crossed in this round, counted where the clients are and added up."""
        keys = [(kind, direction) for kind in KINDS for direction in DIRECTIONS]
        known = self.boundary.traffic_bytes
        counts = self.link.add_up([*(known[key] for key in keys), *(key in known for key in keys)])
        sizes, present = counts[: len(keys)], counts[len(keys) :]
        return {key: size for key, size, somewhere in zip(keys, sizes, present, strict=True) if somewhere}

    def agree_on_steps(self) -> None:
        """Have the Trainer count the same optimizer steps everywhere: those of the first process, who has all."""
        counted = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        (steps,) = self.link.from_server([float(counted.completed)])
        counted.ready = counted.completed = int(steps)
