"""Drift: how far client halves, and the server half or its copies, travel from where they started in the round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sfl.callbacks.rows import square
from lightning_sfl.callbacks.trail import Trail, distances, trail_of, update_of
from lightning_sfl.callbacks.watcher import Watcher
from lightning_sfl.core.aggregation import normalised
from lightning_sfl.core.errors import require
from lightning_sfl.core.events import ClientEnd, ClientStart, ClientStep, RoundEnd, RoundStart, ServerStep
from lightning_sfl.measures.drift import Drift as Drifted
from lightning_sfl.measures.drift import Path, drift, total, whole_sum
from lightning_sfl.measures.gram import NAN
from lightning_sfl.records.report import RoundReport


class Track:
    """One half on its way, its steps, and the distances that were looked at: from its own start, and from the anchor
    where one is given that lies elsewhere.
    """

    def __init__(self, trail: Trail, anchor: Tensor | None = None) -> None:
        self.trail = trail
        apart = anchor is not None and not torch.equal(trail.start, anchor)
        self.origins = [trail.start, anchor] if anchor is not None and apart else [trail.start]
        self.distances: list[list[Tensor]] = [[] for _ in self.origins]
        self.steps = 0

    def move(self, own: Tensor, series: int) -> Tensor:
        """Where the half is, seen from its own start (0), as given, or from the anchor (-1)."""
        origin = self.origins[series]
        return own if origin is self.trail.start else own.double() + (self.trail.start.double() - origin.double())

    def due(self, interval: int) -> bool:
        """Count a step; whether it is one to look at."""
        self.steps += 1
        return self.steps % interval == 0 and bool(self.trail.now)


def square_sums(tracks: Sequence[Track], series: int) -> list[Tensor]:
    """For each track the sum of its squared distances, float64."""
    found = [track.distances[series] for track in tracks]
    known = [distance for distances in found for distance in distances]
    squares = torch.stack(known).double().square() if known else torch.zeros(0, dtype=torch.float64)
    return [part.sum() for part in squares.split([len(distances) for distances in found])]


class Finished:
    """Halves that finished the round: tracks, end distances, aggregation weights, weighted sum of the moves.

    series: 0, all of it from each half's own start; -1, from the anchor.
    """

    def __init__(self, series: int) -> None:
        self.series = series
        self.tracks: list[Track] = []
        self.ends: list[Tensor] = []
        self.weights: list[float] = []
        self.sum: Tensor | None = None

    def add(self, track: Track, own: Tensor, weight: float) -> None:
        """One more half at its end, which is so far from its own start."""
        move = track.move(own, self.series)
        self.tracks.append(track)
        self.ends.append(square(move))
        self.weights.append(weight)
        self.sum = move.double() * weight if self.sum is None else self.sum.add_(move, alpha=weight)


class Drift(Watcher):
    """Writes `drift/*_client`, `drift/*_server` and their `drift/*_total`; compare it over rounds, not over methods.

    `end_w` and `agg_residual`, the distance between the merged half's move and the mean move, weigh clients as the
    weighted average does; with another aggregator the residual says how far it goes from that. Clients that did not
    finish are left out.

    Args:
        every: measure in every so many rounds, 0 for never; it looks at every step, so each round would cost a tenth.
        sample_interval: look at every so many steps of a half.
        anchor: a second series, `drift/*_anchor`, from the merged state of the round's start instead of each half's
            own; the same where all start from it.
    """

    def __init__(self, every: int = 10, sample_interval: int = 1, anchor: bool = False) -> None:
        super().__init__(every)
        require(sample_interval >= 1, "sample_interval", sample_interval, "an integer >= 1")
        self.sample_interval = sample_interval
        self.series = {"": 0, "_anchor": -1} if anchor else {"": 0}
        self._forget()

    def attends(self, round: int) -> bool:
        """Only rounds that are measured."""
        return self.due(round)

    def _forget(self) -> None:
        self.clients: dict[int, Track] = {}
        self.servers: dict[int, Track] = {}
        self.served: set[int] = set()
        self.anchors: dict[str, Track] = {}
        self.finished = {half: [Finished(series) for series in self.series.values()] for half in ("client", "server")}
        self.seen: dict[str, list[Tensor]] = {}

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
        self.clients[event.slot] = self._track(event, event.client_half, "client")
        if event.server_half is not None:
            self.servers[id(event.server_half)] = self._track(event, event.server_half, "server")

    def _track(self, event: ClientStart, module: nn.Module, half: str) -> Track:
        anchor = self.anchors[half].trail.start if "_anchor" in self.series else None
        return Track(trail_of(event, module), anchor)

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
                    for found, origin in zip(track.distances, track.origins, strict=True):
                        found.append(track.trail.distance(event, origin))

    @torch.no_grad()
    def _measure(self, tracks: Iterable[Track]) -> None:
        chosen = [track for track in tracks if track.due(self.sample_interval)]
        for series in range(max((len(track.origins) for track in chosen), default=0)):
            having = [track for track in chosen if series < len(track.origins)]
            found = distances([track.trail for track in having], [track.origins[series] for track in having])
            for track, distance in zip(having, found, strict=True):
                track.distances[series].append(distance)

    @torch.no_grad()
    def on_client_end(self, module: Any, event: ClientEnd) -> None:
        """Take in a client that finished, and its server copy."""
        track = self.clients.pop(event.slot, None)
        if track is None or not event.finished:
            return
        self._finish("client", track, update_of(event, track.trail), event.weight)
        copy = self.servers.get(id(event.server_half)) if event.server_half is not None else None
        if copy is not None:
            self._finish("server", copy, update_of(event, copy.trail), event.weight)

    def _finish(self, half: str, track: Track, own: Tensor, weight: float) -> None:
        for finished in self.finished[half]:
            finished.add(track, own, weight)

    @torch.no_grad()
    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        """How far the merged halves moved, and how that differs from the mean move."""
        if not self.anchors:
            return
        shared = self.anchors["server"]
        if shared.steps and not self.finished["server"][0].tracks:
            self._finish("server", shared, update_of(event, shared.trail), 1.0)
        for half, anchor in self.anchors.items():
            update = update_of(event, anchor.trail)
            self.seen[half] = [self._summary(finished, update) for finished in self.finished[half]]
        self.clients.clear()
        self.servers.clear()

    def _summary(self, finished: Finished, update: Tensor) -> Tensor:
        """One float64 vector on the device: the update's square, the residual's, the square sums, the end squares."""
        total = sum(finished.weights)
        residual = update.new_zeros(0) if finished.sum is None or not total else update.double() - finished.sum / total
        parts = [square(update), square(residual), *square_sums(finished.tracks, finished.series), *finished.ends]
        return torch.stack([part.to(update.device) for part in parts])

    def report(self, module: Any, report: RoundReport) -> None:
        """The scalars of both halves and of both together, which there are where both halves have them."""
        for place, suffix in enumerate(self.series):
            known = [self._read(self.finished[half][place], seen[place]) for half, seen in self.seen.items()]
            for half, found in zip(self.seen, known, strict=True):
                for name, value in vars(found).items():
                    if not suffix or name != "update_sq":  # which is the same for both series
                        report.scalar(f"drift/{name}_{half}{suffix}", value)
            for name, value in vars(total(*known)).items() if known else ():
                if value == value and (not suffix or name != "update_sq"):
                    report.scalar(f"drift/{name}_total{suffix}", value)
        self._forget()

    def _read(self, finished: Finished, seen: Tensor) -> Drifted:
        """What a summary says."""
        count = len(finished.tracks)
        update_sq, residual_sq, *rest = seen.tolist()
        paths = [
            Path(whole_sum(square_sum, track.steps, self.sample_interval), track.steps, end)
            for track, square_sum, end in zip(finished.tracks, rest[:count], rest[count:], strict=True)
        ]
        weights = normalised(finished.weights) if sum(finished.weights) > 0 else [0.0] * count
        return drift(paths, weights, update_sq, residual_sq**0.5 if count else NAN)
