"""Drift: how far client halves, and the server half or its copies, travel from where they started in the round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sfl.callbacks.rows import square
from lightning_sfl.callbacks.trail import Trail, distances, trail_of, update_of
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.aggregation import normalised
from lightning_sfl.core.errors import require
from lightning_sfl.core.events import ClientEnd, ClientStart, ClientStep, RoundEnd, RoundStart, ServerStep
from lightning_sfl.measures.drift import Path, drift, whole_sum
from lightning_sfl.measures.gram import NAN
from lightning_sfl.records.report import RoundReport


class Track:
    """One half on its way, its steps, and the distances from its start that were looked at."""

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        self.distances: list[Tensor] = []
        self.steps = 0

    def due(self, interval: int) -> bool:
        """Count a step; whether it is one to look at."""
        self.steps += 1
        return self.steps % interval == 0 and bool(self.trail.now)


def square_sums(tracks: Sequence[Track]) -> list[Tensor]:
    """For each track the sum of its squared distances, float64."""
    known = [distance for track in tracks for distance in track.distances]
    squares = torch.stack(known).double().square() if known else torch.zeros(0, dtype=torch.float64)
    return [part.sum() for part in squares.split([len(track.distances) for track in tracks])]


class Finished:
    """Halves that finished the round: tracks, end distances, aggregation weights, weighted sum of the moves."""

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self.ends: list[Tensor] = []
        self.weights: list[float] = []
        self.sum: Tensor | None = None

    def add(self, track: Track, move: Tensor, weight: float) -> None:
        """One more half, at its end."""
        self.tracks.append(track)
        self.ends.append(square(move))
        self.weights.append(weight)
        self.sum = move.double() * weight if self.sum is None else self.sum.add_(move, alpha=weight)


class Drift(Watcher):
    """Writes `drift/*_client` and `drift/*_server`; compare it over rounds, not over methods.

    `end_w` and `agg_residual`, the distance between the merged half's move and the mean move, weigh clients as the
    weighted average does; with another aggregator the residual says how far it goes from that. Clients that did not
    finish are left out.

    Args:
        every: measure in every so many rounds, 0 for never; it looks at every step, so each round would cost a tenth.
        sample_interval: look at every so many steps of a half.
    """

    def __init__(self, every: int = 5, sample_interval: int = 1) -> None:
        super().__init__(every)
        require(sample_interval >= 1, "sample_interval", sample_interval, "an integer >= 1")
        self.sample_interval = sample_interval
        self._forget()

    def attends(self, round: int) -> bool:
        """Only rounds that are measured."""
        return self.due(round)

    def _forget(self) -> None:
        self.clients: dict[int, Track] = {}
        self.servers: dict[int, Track] = {}
        self.served: set[int] = set()
        self.anchors: dict[str, Track] = {}
        self.finished = {"client": Finished(), "server": Finished()}
        self.seen: dict[str, Tensor] = {}

    def on_round_start(self, module: Any, event: RoundStart) -> None:
        """Remember both global halves."""
        self._forget()
        if self.due(event.round):
            self.anchors = {
                "client": Track(trail_of(event, event.client_half)),
                "server": Track(trail_of(event, event.server_half)),
            }
            self.servers[id(event.server_half)] = self.anchors["server"]

    def on_client_start(self, module: Any, event: ClientStart) -> None:
        """Remember where a client, and its server copy, start."""
        if not self.due(event.round):
            return
        self.clients[event.slot] = Track(trail_of(event, event.client_half))
        if event.server_half is not None:
            self.servers[id(event.server_half)] = Track(trail_of(event, event.server_half))

    def on_client_step(self, module: Any, event: ClientStep) -> None:
        """Distances of all clients that moved, and of server copies that the client's optimizer moves."""
        if not self.clients:
            return
        tracks = [self.clients.get(turn.slot) for turn in event.turns]
        copies = [id(turn.server_half) for turn in event.turns if turn.server_half is not None]
        tracks += [self.servers.get(copy) for copy in copies if copy not in self.served]
        self._measure(track for track in tracks if track is not None)

    def on_server_step(self, module: Any, event: ServerStep) -> None:
        """Distance of the server copy that moved."""
        track = self.servers.get(id(event.server_half))
        if track is not None:
            self.served.add(id(event.server_half))
            if track.due(self.sample_interval):
                with torch.no_grad():
                    track.distances.append(track.trail.distance(event))

    @torch.no_grad()
    def _measure(self, tracks: Iterable[Track]) -> None:
        chosen = [track for track in tracks if track.due(self.sample_interval)]
        if chosen:
            for track, distance in zip(chosen, distances([track.trail for track in chosen]), strict=True):
                track.distances.append(distance)

    @torch.no_grad()
    def on_client_end(self, module: Any, event: ClientEnd) -> None:
        """Take in a client that finished, and its server copy."""
        track = self.clients.pop(event.slot, None)
        if track is None or not event.finished:
            return
        self.finished["client"].add(track, update_of(event, track.trail), event.weight)
        copy = self.servers.get(id(event.server_half)) if event.server_half is not None else None
        if copy is not None:
            self.finished["server"].add(copy, update_of(event, copy.trail), event.weight)

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """How far the merged halves moved, and how that differs from the mean move."""
        if not self.anchors:
            return
        shared = self.anchors["server"]
        if shared.steps and not self.finished["server"].tracks:
            self.finished["server"].add(shared, update_of(event, shared.trail), 1.0)
        for half, anchor in self.anchors.items():
            self.seen[half] = self._summary(self.finished[half], update_of(event, anchor.trail))
        self.clients.clear()
        self.servers.clear()

    def _summary(self, finished: Finished, update: Tensor) -> Tensor:
        """One float64 vector on the device: the update's square, the residual's, the square sums, the end squares."""
        total = sum(finished.weights)
        residual = update.new_zeros(0) if finished.sum is None or not total else update.double() - finished.sum / total
        parts = [square(update), square(residual), *square_sums(finished.tracks), *finished.ends]
        return torch.stack([part.to(update.device) for part in parts])

    def report(self, module: Any, report: RoundReport) -> None:
        """The scalars of both halves."""
        for half, seen in self.seen.items():
            finished = self.finished[half]
            count = len(finished.tracks)
            update_sq, residual_sq, *rest = seen.tolist()
            paths = [
                Path(whole_sum(square_sum, track.steps, self.sample_interval), track.steps, end)
                for track, square_sum, end in zip(finished.tracks, rest[:count], rest[count:], strict=True)
            ]
            weights = normalised(finished.weights) if sum(finished.weights) > 0 else [0.0] * count
            for name, value in vars(drift(paths, weights, update_sq)).items():
                report.scalar(f"drift/{name}_{half}", value)
            report.scalar(f"drift/agg_residual_{half}", residual_sq**0.5 if count else NAN)
        self._forget()
