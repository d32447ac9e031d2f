"""What keeping a client's replica up to date costs in bytes, which the scalars alone do not show."""

from __future__ import annotations

from typing import Any, Literal

from lightning_sfl.core.errors import require

Synchronisation = Literal["replay", "state"]


class SyncLedger:
    """Bytes down to a client at the start of its round.

    state: the whole state, every time. replay: the messages it has missed since it last took part, or the state where
    that is shorter or the client is new.
    """

    def __init__(self, way: Synchronisation) -> None:
        require(way in ("replay", "state"), "synchronisation", way, "replay or state")
        self.way = way
        self.sent_bytes = 0
        self.seen_bytes: dict[int, int] = {}

    def catch_up(self, client: int, state_bytes: int) -> tuple[int, int]:
        """Bytes of state and of messages that bring this client up to date."""
        if self.way == "state" or client not in self.seen_bytes:
            return state_bytes, 0
        missed = self.sent_bytes - self.seen_bytes[client]
        return (state_bytes, 0) if missed > state_bytes else (0, missed)

    def close(self, clients: tuple[int, ...], message_bytes: int) -> None:
        """These clients have received the message of the round that ends."""
        self.sent_bytes += message_bytes
        for client in clients:
            self.seen_bytes[client] = self.sent_bytes

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {"sent_bytes": self.sent_bytes, "seen_bytes": dict(self.seen_bytes)}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.sent_bytes, self.seen_bytes = state["sent_bytes"], dict(state["seen_bytes"])
