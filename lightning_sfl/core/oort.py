"""Oort: participants whose rows have large losses and who are quick, with some that are new.

F. Lai, X. Zhu, H. V. Madhyastha, M. Chowdhury, "Oort: Efficient Federated Learning via Guided Participant Selection",
OSDI 2021, with the constants of its released code. R is the round, from 1 on; L a client's last one.

    utility of a client:  rows * sqrt(mean squared loss over all that it trained on in its last round)
    explored:   new clients, as many as a share that decays; drawn by their number of rows
    exploited:  by (utility clipped to a quantile, scaled to 0..1) + sqrt(0.1 ln R / L), among the best of them
    slow ones:  whoever takes longer than T has its score times (T / its time)^penalty
    pacer:      T, a percentile of all clients' times, goes up where utilities stall, and down where they leap
    left out:   clients of few rows, and a blacklist of those that have taken part most often
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_sfl.core.errors import require
from lightning_sfl.core.memory import Memory
from lightning_sfl.core.population import Population
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.reports import Report
from lightning_sfl.core.selection import Selector

PACER_STEP, PACER_PERCENT, STALLED, LEAPED = 20, 5.0, 0.1, 5.0
WINDOW, MOST_HELD, LEAST_RANGE = 5, 10, 1e-4
BLACKLIST_SHARE = 0.3


class Oort(Selector, Memory):
    """Prefers clients with large losses that are quick, and tries new ones all the time.

    Args:
        exploration: share of new clients at the start; it decays by 2% a round.
        least_exploration: where it stops. Shares are rounded down, so that of 3 participants none is new below a third.
        speed_penalty: exponent of what a slow client's score is multiplied by; 0 to look at losses only.
        fast_percent: clients within this percentile of times are not slow, at the start; 100 for no slow ones.
        cut_off: clients are exploited whose score is at least this share of the last one's that would just get in.
        clip: quantile of utilities above which they count as alike, so that outliers are not always chosen.
        min_rows: clients with fewer rows are never chosen; 1 for all, where the released code has 32.
        blacklist_after: who has taken part more often than this is left out, but no more than 30% of the clients, those
            that did most often, and nobody whom a round cannot do without; null for nobody, as in the released code.
    """

    depends_on_past = True
    learns = True
    utility: Tensor
    last: Tensor
    history: Tensor
    percent: Tensor
    picks: Tensor

    def __init__(
        self,
        exploration: float = 0.9,
        least_exploration: float = 0.3,
        speed_penalty: float = 2.0,
        fast_percent: float = 30.0,
        cut_off: float = 0.95,
        clip: float = 0.9,
        min_rows: int = 1,
        blacklist_after: int | None = None,
    ) -> None:
        empty, none = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
        counted = {} if blacklist_after is None else {"picks": none}
        super().__init__(utility=empty, last=none, history=empty, percent=empty.new_tensor(fast_percent), **counted)
        shares = {"exploration": exploration, "least_exploration": least_exploration, "cut_off": cut_off, "clip": clip}
        for key, share in shares.items():
            require(0 <= share <= 1, f"selection.{key}", share, "a number from 0 to 1")
        require(0 <= speed_penalty < math.inf, "selection.speed_penalty", speed_penalty, "a finite number >= 0")
        require(0 < fast_percent <= 100, "selection.fast_percent", fast_percent, "a number above 0, at most 100")
        require(min_rows >= 1, "selection.min_rows", min_rows, "an integer >= 1")
        some = blacklist_after is None or blacklist_after >= 0
        require(some, "selection.blacklist_after", blacklist_after, "an integer >= 0, or null")
        self.min_rows, self.blacklist_after = min_rows, blacklist_after
        self.exploration, self.least_exploration = exploration, least_exploration
        self.speed_penalty, self.fast_percent, self.cut_off, self.clip = speed_penalty, fast_percent, cut_off, clip
        self.exploited: list[int] = []

    # --- what it remembers ------------------------------------------------------------------------------------------

    def prepare(self, population: Population, num_classes: int, participants: int, step_rows: int | None) -> None:
        self.sizes, count = np.asarray(population.sizes), population.num_clients
        asked = min(participants, int((self.sizes > 0).sum()))
        most = int(np.sort(self.sizes)[-asked])
        allowed = f"at most {most}, which leaves the {asked} clients that a round asks"
        require(self.min_rows <= most, "selection.min_rows", self.min_rows, allowed)
        if self.blacklist_after is not None:
            self.picks = self.picks.new_zeros(count)
        self.utility, self.last = self.utility.new_zeros(count), self.last.new_zeros(count)
        self.history, self.percent = self.history.new_zeros(0), self.percent.new_tensor(self.fast_percent)

    def tell_work(self, rows: Sequence[int], seconds: Sequence[float]) -> None:
        self.rows, self.seconds = np.asarray(rows, float), np.asarray(seconds)

    def learn(self, round: int, reports: Mapping[int, Report]) -> None:
        done = {client: report for client, report in reports.items() if not report.late}
        own = {client: min(self.rows[client], report.rows) * report.root_mean_square for client, report in done.items()}
        for client in reports:  # late ones have the average of the others
            self.last[client] = round + 1
            self.utility[client] = own[client] if client in own else sum(own.values()) / len(own)
            if self.blacklist_after is not None:
                self.picks[client] += 1
        known = [own[client] for client in self.exploited if client in own]
        newest = self.history.new_tensor([sum(known) / len(known) if known else 0.0])
        self.history = torch.cat([self.history, newest])[-2 * PACER_STEP :]
        self._pace(round + 1)

    def _pace(self, number: int) -> None:
        if number % PACER_STEP or len(self.history) < 2 * PACER_STEP:
            return
        before, now = self.history.view(2, PACER_STEP).sum(dim=1).tolist()
        if abs(now - before) <= STALLED * before:
            self.percent = (self.percent + PACER_PERCENT).clamp(max=100)
        elif abs(now - before) >= LEAPED * before:
            self.percent = (self.percent - PACER_PERCENT).clamp(min=PACER_PERCENT)

    # --- how it chooses ---------------------------------------------------------------------------------------------

    def select(self, round: int, available: np.ndarray, participants: int, seed: int) -> list[int]:
        available = available[self.sizes[available] >= self.min_rows]
        count = min(participants, len(available))
        if not count:
            self.exploited = []
            return []
        draws, limit = stream(seed, "oort", round), self._limit(available)
        available = self._without_blacklist(available, count)
        seen = available[self.last.cpu().numpy()[available] > 0]
        new = np.setdiff1d(available, seen)
        exploit = min(count - int(count * self.exploring(round)), len(seen))
        explore = min(count - exploit, len(new))
        exploit = count - explore
        scores = self.scores(round, seen, limit)
        order = np.argsort(-scores, kind="stable")[: self._held(scores, exploit)]
        self.exploited = drawn_by(draws, seen[order], scores[order], exploit)
        worth = self.rows[new] * self._speed(new, limit)
        order = np.argsort(-worth, kind="stable")[: WINDOW * explore]
        return [*self.exploited, *drawn_by(draws, new[order], worth[order], explore)]

    def blacklist(self) -> list[int]:
        """Who has taken part too often, most often first."""
        if self.blacklist_after is None:
            return []
        picks, most = self.picks.cpu().numpy(), int(BLACKLIST_SHARE * (self.sizes >= self.min_rows).sum())
        order = np.argsort(-picks, kind="stable")[:most]
        return [int(client) for client in order if picks[client] > self.blacklist_after]

    def _without_blacklist(self, available: np.ndarray, count: int) -> np.ndarray:
        """Those of the available that may be chosen, of which `count` at least have to remain."""
        listed = [client for client in self.blacklist() if client in available]
        return np.setdiff1d(available, listed[: len(available) - count])

    def exploring(self, round: int) -> float:
        """Share of new clients in this round."""
        return max(self.exploration * 0.98 ** (round + 1), self.least_exploration)

    def scores(self, round: int, seen: np.ndarray, limit: float) -> np.ndarray:
        """What seen clients are exploited by; `limit`: seconds from which on a client is slow."""
        if not len(seen):
            return np.zeros(0)
        utility, last = self.utility.cpu().numpy()[seen], self.last.cpu().numpy()[seen]
        ordered = np.sort(utility)
        highest = ordered[min(int(len(ordered) * self.clip), len(ordered) - 1)]
        low = 0.999 * ordered[0]
        scaled = (np.minimum(utility, highest) - low) / max(ordered[-1] - low, LEAST_RANGE)
        return np.abs((scaled + np.sqrt(0.1 * math.log(round + 1) / last)) * self._speed(seen, limit))

    def _held(self, scores: np.ndarray, exploit: int) -> int:
        """How many of the best are drawn from: those near the one that just gets in, or who just does not."""
        if not exploit:
            return 0
        ordered = np.sort(scores)[::-1]
        near = int((ordered >= self.cut_off * ordered[min(exploit, len(ordered) - 1)]).sum())
        return min(near, MOST_HELD * exploit + 1)

    def _limit(self, available: np.ndarray) -> float:
        percent, ordered = float(self.percent), np.sort(self.seconds[available])
        return math.inf if percent >= 100 else float(ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)])

    def _speed(self, clients: np.ndarray, limit: float) -> np.ndarray:
        seconds = self.seconds[clients]
        return np.where(seconds > limit, (limit / seconds) ** self.speed_penalty, 1.0)


def drawn_by(draws: np.random.Generator, clients: np.ndarray, scores: np.ndarray, count: int) -> list[int]:
    """`count` clients without replacement, each time in proportion to the scores of those left; at 0 only at last.

    P. S. Efraimidis, P. G. Spirakis, "Weighted random sampling with a reservoir", 2006: the smallest Exp(1) / score.
    """
    order = draws.permutation(len(clients))
    with np.errstate(divide="ignore"):
        keys = draws.exponential(size=len(clients)) / scores[order]
    return [int(client) for client in clients[order][np.argsort(keys, kind="stable")[:count]]]
