"""What is seen of a method's clients in a round, and the attack on it: which inputs would have given the same?

One client trains one step of plain SGD at its learning rate, on a few rows; its update passes the run's privacy as it
would in the first round. The network is run as in training, but for dropout. The attacker knows the network, the labels
and the range of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sfl.core.aggregation import normalised
from lightning_sfl.core.cut import Smashed, parts
from lightning_sfl.core.population import Population
from lightning_sfl.core.privacy.base import Moment
from lightning_sfl.core.privacy.sample import SampleDP
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.selection import Uniform
from lightning_sfl.measures.inversion import invert, relative_error
from lightning_sfl.methods.base import SplitMethod

NUM_GUESSES = 20


@dataclass(frozen=True)
class Seen:
    """Something that somebody sees: as far as nothing is hidden, target = view(inputs of the first `clients` victims).

    by_cosine: only directions can be compared.
    """

    by: str
    what: str
    target: Tensor
    view: Callable[[Tensor], Tensor]
    clients: int = 1
    by_cosine: bool = True


class Victims:
    """A few rows of each client of a round; the first client is the one who is attacked."""

    def __init__(self, method: SplitMethod, population: Population, rows: int) -> None:
        seed = method.seed
        self.clients = Uniform().select(0, method.available, method.num_expected, seed)
        chosen = []
        for client in self.clients:
            own = population.rows[client]
            chosen.append(stream(seed, "leaks", client=client).choice(own, min(rows, len(own)), replace=False))
        self.sizes = [len(own) for own in chosen]
        self.weights = [method.weight_of(*each) for each in zip(self.clients, self.sizes, strict=True)]
        x, y = population.take(np.concatenate(chosen))
        self.x, self.y = [*x.split(self.sizes)], [*y.split(self.sizes)]
        self.everybody, _ = population.take(np.concatenate(population.rows))
        self.mean = self.everybody.mean(dim=0)
        self.bounds = (float(self.everybody.min()), float(self.everybody.max()))

    def num_rows(self, clients: int) -> int:
        """Rows of so many of the first clients."""
        return sum(self.sizes[:clients])

    def error(self, found: Tensor, clients: int) -> float:
        """How far the rows of the first client are from those that were found in place of so many clients' rows."""
        labels = torch.cat(self.y[:clients])
        firsts = [each.reshape(len(each), -1)[:, 0] for each in (labels, self.y[0])]
        return relative_error(found, firsts[0], self.x[0], firsts[1], self.mean)


class Attack:
    """What is seen, and how well inputs are found from it. The halves must be in the mode that is wanted."""

    def __init__(self, method: SplitMethod, population: Population, rows: int) -> None:
        self.method, self.victims = method, Victims(method, population, rows)
        self.halves: list[nn.Module] = [method.client_half, method.server_half]
        central = method.privacy is not None and not method.privacy.at_client
        owned = self.halves if method.whole_on_client or (central and method.server_copies) else self.halves[:1]
        self.trained = [p for half in owned for p in half.parameters() if p.requires_grad]
        factory = method.factories["client"][0]
        # an update is minus the rate times the gradient; where there is no client optimizer, the gradient itself
        self.factor = 1.0 if factory is None else -factory([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]

    # --- what is seen -----------------------------------------------------------------------------------------------

    def gradient(self, x: Tensor, clients: range = range(1), graph: bool = True) -> Tensor:
        """Flat gradient of the weighted mean of these clients' losses, with x in place of their rows."""
        victims = self.victims
        shares = normalised([victims.weights[i] for i in clients])
        pieces = x.split([victims.sizes[i] for i in clients])
        loss = torch.zeros(())
        for i, share, own in zip(clients, shares, pieces, strict=True):
            loss = loss + share * self.method.loss(self.halves[1](self.halves[0](own)), victims.y[i])
        found = torch.autograd.grad(loss, self.trained, create_graph=graph, allow_unused=True)
        columns = zip(self.trained, found, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in columns])

    def gradient_by_rows(self, dp: SampleDP, client: int) -> Tensor:
        """The gradient of one client's step, its rows bounded and noised."""
        x, y = self.victims.x[client], self.victims.y[client]
        logits = self.halves[1](self.halves[0](x))
        rows = [([self.method.loss(logits[j : j + 1], y[j : j + 1])], None) for j in range(len(y))]
        key = (self.method.seed, "sample_dp", 0, self.victims.clients[client], 0)
        dp.descend(rows, self.trained, 1.0, len(y), key)
        found = torch.cat([p.grad.flatten() for p in self.trained if p.grad is not None])
        for parameter in self.trained:
            parameter.grad = None
        return found

    def smashed(self, x: Tensor) -> Tensor:
        """What leaves the client half, as one vector."""
        return flat(self.halves[0](x))

    def seen(self) -> list[Seen]:
        """Everything that is seen of the first client; what is hidden comes after the same without that."""
        return [*(self.seen_smashed() if self.method.answers_uploads else ()), *self.seen_updates()]

    def seen_smashed(self) -> Iterator[Seen]:
        """Its smashed data."""
        veil = self.method.veil
        with torch.no_grad():
            leaving = [*parts(self.halves[0](self.victims.x[0]))]
        if veil is None:
            yield Seen("server", "smashed data", flat(tuple(leaving)), self.smashed, by_cosine=False)
            return
        yield Seen("nobody", "smashed data before noise", flat(tuple(leaving)), self.smashed, by_cosine=False)
        noised = flat(tuple(veil(0, self.victims.clients[0], 0, leaving)))
        yield Seen("server", f"smashed data with noise {veil.std:g}", noised, self.smashed, by_cosine=False)

    def seen_updates(self) -> Iterator[Seen]:
        """Its update, or a mean in which it has a part."""
        method, victims = self.method, self.victims
        privacy, count = method.privacy, len(victims.clients)
        names = ["sample_dp"] * (method.sample_dp is not None) + ([type(privacy).__name__] if privacy else [])
        trusted = privacy is not None and not privacy.at_client
        gradients = [self.gradient(x, range(i, i + 1), graph=False) for i, x in enumerate(victims.x)]
        by = "server" if not names or (trusted and method.sample_dp is None) else "nobody"
        yield Seen(
            by, " before ".join(["update", *([" and ".join(names)] if names else [])]), gradients[0], self.gradient
        )
        if method.sample_dp is not None:
            gradients = [self.gradient_by_rows(method.sample_dp, i) for i in range(count)]
            if trusted or privacy is None:
                yield Seen("server", "update after sample_dp", gradients[0], self.gradient)
        if privacy is None:
            return
        name = " and ".join(names)
        moments = [Moment(method.seed, 0)] * count
        updates = [self.factor * gradient for gradient in gradients]
        hidden = [privacy.hide(*each) for each in zip(updates, victims.clients, moments, strict=True)]
        if not privacy.forms_mean:
            yield Seen("server", f"update after {name}", hidden[0] / self.factor, self.gradient)
            return
        mean = privacy.average(hidden, victims.weights, victims.clients, moments)
        what = f"mean of {count} updates after {name}"
        view = lambda x: self.gradient(x, range(count))  # noqa: E731
        yield Seen("everybody" if trusted else "server", what, mean / self.factor, view, count)

    # --- what is found ----------------------------------------------------------------------------------------------

    def figures(self, seen: Seen, steps: int, restarts: int, told: Callable[[], None]) -> dict[str, Any]:
        """How far the best inputs that were found are from the true ones; the same for rows taken blindly."""
        victims, seed = self.victims, self.method.seed
        count, (low, high) = victims.num_rows(seen.clients), victims.bounds
        starts = [self.start(stream(seed, "inversion", step=place), count) for place in range(restarts)]
        found = invert(seen.view, seen.target, starts, (low, high), steps, seen.by_cosine, told)
        draws = stream(seed, "guesses").integers(0, len(victims.everybody), (NUM_GUESSES, count))
        guesses = [victims.error(victims.everybody[torch.from_numpy(rows)], seen.clients) for rows in draws]
        error = victims.error(found, seen.clients)
        spread = float((victims.x[0] - victims.mean).square().mean().sqrt())
        psnr = 20 * np.log10((high - low) / max(error * spread, 1e-12))
        return {
            "seen_by": seen.by, "what": seen.what, "rows": count, "error": error,
            "guess_error": float(np.mean(guesses)), "psnr_db": float(psnr),
        }  # fmt: skip

    def start(self, draws: np.random.Generator, count: int) -> Tensor:
        """Inputs to begin with, around the middle of the range."""
        low, high = self.victims.bounds
        shares = draws.uniform(0.25, 0.75, (count, *self.victims.mean.shape))
        return torch.from_numpy(low + (high - low) * shares).to(self.victims.mean)


def flat(smashed: Smashed) -> Tensor:
    """All parts as one vector."""
    return torch.cat([part.flatten() for part in parts(smashed)])
