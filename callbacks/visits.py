"""Names for the visits of a round: which of its participants a line of the record is about."""

from __future__ import annotations

from collections import Counter


class Visits:
    """Names for the visits of a round: `7` for client 7, `7.1` when it comes a second time in the same round."""

    def __init__(self) -> None:
        self.count: Counter[int] = Counter()
        self.in_slot: dict[int, tuple[int, str]] = {}

    def start(self, slot: int, client_id: int) -> str:
        """The name of the visit that begins in this slot."""
        visit = self.count[client_id]
        self.count[client_id] += 1
        key = f"{client_id}.{visit}" if visit else f"{client_id}"
        self.in_slot[slot] = (client_id, key)
        return key

    def of(self, slot: int, client_id: int) -> str:
        """The name of the visit under way in this slot; one carried over from the round before begins here."""
        client, key = self.in_slot.get(slot, (None, ""))
        return key if client == client_id else self.start(slot, client_id)
