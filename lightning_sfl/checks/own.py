"""The method's own step: its gradient, its denominators, its counts and its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sfl.checks.bench import Bench
from lightning_sfl.checks.finding import Measured, NotApplicable
from lightning_sfl.checks.halves import need_plain_layers
from lightning_sfl.checks.seen import Seen, plans_of, whole, with_rates
from lightning_sfl.checks.states import furthest, kept
from lightning_sfl.checks.surroundings import refusals_are_reasons
from lightning_sfl.core.cut import Upload, cloned, num_bytes, parts, state_bytes
from lightning_sfl.core.events import ClientEnd, ClientStart, ClientStep, CutGradient, RoundEnd
from lightning_sfl.core.randomness import seed_torch
from lightning_sfl.core.rounds import Batch
from lightning_sfl.measures.cut_scale import effective_denominator
from lightning_sfl.methods.base import SplitMethod

ALL_ROWS = {"batch_size": None, "local_epochs": 1, "local_steps": None}
LOST = 1e-12


def one_step(bench: Bench) -> Measured:
    """One client, one step of rate 1 on all its rows: what was subtracted, against autograd through both halves."""
    alone = bench.few.only([0])
    method = with_rates(bench.new(**ALL_ROWS, participants=1), 1.0, 1.0)
    plans = plans_of(method)
    with refusals_are_reasons():
        after = bench.exact(method, alone)
    turns = [batch for batches in plans[0].batches for batch in batches]
    bench.need(len(turns) <= 1, f"the method takes {len(turns)} steps on one client with one batch")
    rows = turns[0].rows if turns else alone.population.rows[0]
    before, wanted = uncut_gradient(bench, rows)
    moved = {name: before[name] - after[name].cpu() for name in wanted}
    size = max(gradient.abs().max().item() for gradient in wanted.values())
    return Measured(furthest(moved, wanted) / max(size, LOST), bench.rounding)


def uncut_gradient(bench: Bench, rows: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Start weights and their gradient of the mean loss of these rows, under the draws of client 0's first step."""
    method = bench.new(participants=1)
    method.cut(bench.few.example())
    with bench.in_doubt():
        dtype = torch.get_default_dtype()
        sides = [half.to(dtype).train() for half in (method.client_half, method.server_half)]
        before = kept(sides[0]) | kept(sides[1])
        x, labels = bench.few.only([0]).population.take(rows)
        with torch.random.fork_rng(devices=[]):
            seed_torch(method.seed, "client", 0, 0, 0, torch.device("cpu"))
            smashed = sides[0](x)
            seed_torch(method.seed, "server", 0, 0, 0, torch.device("cpu"))
            loss = method.loss(sides[1](smashed), labels)
        named = [pair for half in sides for pair in half.named_parameters() if pair[1].requires_grad]
        found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True, materialize_grads=True)
    return before, {name: gradient for (name, _), gradient in zip(named, found, strict=True)}


# --- the scale of what is sent back ---------------------------------------------------------------------------------


def denominators(bench: Bench) -> Measured:
    """Each client's cut gradient times what its loss was divided by, against autograd of its own rows' summed loss."""
    need_plain_layers(bench)
    seen = Seen()
    method = with_rates(bench.new(**ALL_ROWS), 0.0, 0.0)
    uploads = uploads_of(method)
    bench.exact(method, bench.few, 1, seen)
    messages = [event for event in seen.of(CutGradient) if event.logits_gradient is not None]
    bench.need(bool(messages), "no cut gradient with its logits comes back over a cut")
    worst, divisors, gains = 0.0, [], []
    for event in messages:
        upload = next((each for each in uploads if each.labels is event.labels), None)
        if upload is None:
            raise NotApplicable("the method's uploads do not pass the loop's own upload()")
        divided = effective_denominator(event.logits, event.logits_gradient, event.labels)
        own = summed_gradient(method, upload)
        worst = max(worst, apart([part * divided for part in event.raw], own))
        divisors.append(divided)
        gains.append(ratio(event.sent, event.raw))
    said = f"batches of {listed([event.labels.numel() for event in messages])}, losses divided by {listed(divisors)}"
    if any(abs(gain - 1) > bench.rounding for gain in gains):
        said += f", then gradients times {listed(gains)}"
    lost = any(gain == 0 or gain != gain for gain in gains)
    return Measured(float("inf") if lost else worst, bench.rounding, said)


def listed(values: Sequence[float]) -> str:
    """Three digits of each."""
    return ", ".join(f"{value:.3g}" for value in values)


def uploads_of(method: SplitMethod) -> list[Upload]:
    """The list into which every upload of the method goes from now on."""
    made: list[Upload] = []
    own = method.upload

    def noted(batches: Sequence[Batch]) -> list[Upload]:
        made.extend(sent := own(batches))
        return sent

    method.upload = noted  # type: ignore[method-assign]
    return made


def summed_gradient(method: SplitMethod, upload: Upload) -> list[Tensor]:
    """Gradient at the cut of the sum of the losses of one client's labels, the server half as it is."""
    leaves = [part.detach().clone().requires_grad_(part.is_floating_point()) for part in parts(upload.received)]
    received = tuple(leaves) if isinstance(upload.received, tuple) else leaves[0]
    logits = method.server_of(upload.slot).train()(cloned(received))
    loss = method.loss(logits, upload.labels) * upload.labels.numel()
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference between two messages, relative to the largest entry."""
    size = max(part.abs().max().item() for part in other)
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True)) / max(size, LOST)


def ratio(sent: tuple[Tensor, ...], raw: tuple[Tensor, ...]) -> float:
    """||sent|| / ||raw||"""
    norms = [sum(part.double().square().sum().item() for part in message) ** 0.5 for message in (sent, raw)]
    return norms[0] / norms[1] if norms[1] else float("nan")


# --- counts and bytes -----------------------------------------------------------------------------------------------


def counts(bench: Bench) -> Measured:
    """Steps and rows of each client in two rounds: taken, by the events, against planned."""
    seen, method = Seen(), bench.new()
    plans = plans_of(method)
    bench.fit(method, rounds=2, callbacks=[seen])
    planned: Counter[tuple[str, int]] = Counter()
    for batch in (batch for plan in plans for batches in plan.batches for batch in batches):
        planned["steps", batch.client_id] += 1
        planned["rows", batch.client_id] += batch.num_rows
    bench.need(bool(planned), "clients draw their batches as they arrive, and no plan lists them")
    taken: Counter[tuple[str, int]] = Counter()
    for event in seen.of(ClientEnd):
        taken["rows", event.client_id] += event.rows
    for turn in (turn for event in seen.of(ClientStep) for turn in event.turns):
        taken["steps", turn.client_id] += 1
    if "client" not in method.roles:
        planned = Counter({key: count for key, count in planned.items() if key[0] == "rows"})
    wrong = sum(abs(planned[key] - taken[key]) for key in {*planned, *taken})
    steps = sum(count for (kind, _), count in taken.items() if kind == "steps")
    return Measured(wrong, 0, f"{steps} client steps")


def traffic(bench: Bench) -> Measured:
    """Bytes by kind, as counted, against the sizes of the tensors that watchers were shown."""
    seen = Seen()
    method = bench.fit(bench.new(), rounds=2, callbacks=[seen])
    counted: Counter[tuple[str, str]] = Counter()
    for event in seen.of(RoundEnd):
        counted.update(event.traffic_bytes)
    expected: Counter[tuple[str, str]] = Counter()
    for event in seen.of(CutGradient):
        expected["smashed", "up"] += num_bytes(event.raw)
        expected["labels", "up"] += num_bytes([event.labels])
        expected["cut_gradients", "down"] += num_bytes(event.sent)
    starts, ends = seen.of(ClientStart), seen.of(ClientEnd)
    whole_states = ("weights", "down") in counted and ("scalars", "up") not in counted
    if whole_states and all(event.finished for event in ends):
        expected["weights", "down"] += sum(owned(method, event) for event in starts)
        if ("gradients", "up") not in counted:
            expected["weights", "up"] += sum(owned(method, event) for event in ends)
    bench.need(bool(expected), "nothing travels that watchers are shown")
    wrong = sum(abs(expected[kind] - counted[kind]) for kind in expected)
    others = sorted({kind for kind, _ in counted} - {kind for kind, _ in expected})
    left = f"; not among them: {', '.join(others)}" if others else ""
    return Measured(wrong, 0, f"{sum(expected.values()):,} bytes{left}")


def owned(method: SplitMethod, event: Any) -> int:
    """Bytes of what a client holds."""
    private = event.server_half if method.whole_on_client else None
    return state_bytes(event.client_half) + (0 if private is None else state_bytes(private))


def scaled_weights(bench: Bench) -> Measured:
    """All aggregation weights times a quarter, which no bit of a mean can feel."""
    method = bench.new()
    own, own_of = method.weights, method.weight_of
    method.weights = lambda plan: [weight / 4 for weight in own(plan)]  # type: ignore[method-assign]
    method.weight_of = lambda client, num_rows: own_of(client, num_rows) / 4  # type: ignore[method-assign]
    return Measured(furthest(whole(bench.fit(method, rounds=2)), bench.alone))
