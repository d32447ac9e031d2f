"""Telling callbacks what happens in a round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from lightning_sfl.core import events
from lightning_sfl.methods.module import SplitModule


class WatchedModule(SplitModule):
    """Delivers each event record to the callbacks that have a method of its name."""

    def watch(self, callbacks: Iterable[Any], here: bool = True) -> None:
        """Note which callbacks have handlers of which events, and ask them `reads_tensors(round)`; `here`: tell them.

        A callback whose handlers of client events only count says that they read no halves: where clients are trained
        in other processes, these then need not be brought. One that says nothing reads them.
        """
        self.present, self.told_here = [callback for callback in callbacks if handlers_of(callback)], here
        self.listen(0)

    def listen(self, round: int) -> None:
        """Leave out, in this round, whoever has nothing to see in it: what nobody hears costs nothing."""
        self.watchers: dict[str, list[Callable[..., None]]] = defaultdict(list)
        self.readers: dict[str, list[Callable[[int], bool]]] = defaultdict(list)
        for callback in self.present:
            if not hasattr(callback, "attends") or callback.attends(round):
                for name in handlers_of(callback):
                    self.readers[name].append(getattr(callback, "reads_tensors", lambda round: True))
                    if self.told_here:
                        self.watchers[name].append(getattr(callback, name))

    def emit(self, record: type[Any], *payload: Any) -> None:
        """Tell those who watch for this record; without watchers it is not even made."""
        handlers = self.watchers[record.handler]
        if handlers:
            event = record(self.current_epoch, *payload)
            for handle in handlers:
                handle(self, event)


def handlers_of(callback: Any) -> list[str]:
    """Names of the event handlers that a callback has."""
    return [record.handler for record in events.Event.__args__ if hasattr(callback, record.handler)]
