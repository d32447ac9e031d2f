"""What must not change a run: doing it again, stopping it, watching it, judging it, naming its clients otherwise."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sfl import callbacks
from lightning_sfl.checkpoint import newest_good
from lightning_sfl.checks.bench import Bench
from lightning_sfl.checks.few import FewRows
from lightning_sfl.checks.finding import Measured, NotApplicable
from lightning_sfl.checks.halves import need_plain_layers
from lightning_sfl.checks.seen import Numbers, Seen, plans_of, whole, with_rates
from lightning_sfl.checks.states import differing, furthest, kept
from lightning_sfl.core.errors import NonFiniteError
from lightning_sfl.core.events import ServerStep
from lightning_sfl.core.rounds import schedule_fingerprint
from lightning_sfl.methods.base import SplitMethod
from lightning_sfl.trainer import KeepLast, run_loggers


def bits(one: Numbers, other: Numbers) -> Measured:
    """The largest difference, none being allowed; the detail names a tensor that differs."""
    found = differing(one, other)
    named = f"{len(found)} of {len(one)} tensors differ, such as {found[0]}" if found else f"{len(one)} tensors"
    distance = furthest(one, other)
    return Measured(distance if distance or not found else math.inf, 0, named)


def repeat(bench: Bench) -> Measured:
    """A second run from a method built anew; the global generators hold something else."""
    return bits(whole(bench.fit(bench.new(), rounds=2)), bench.alone)


def resume(bench: Bench) -> Measured:
    """Stopped after the first round; a method built anew goes on from the file that was written."""
    with tempfile.TemporaryDirectory() as folder:
        kept_in: dict[str, Any] = {"default_root_dir": folder, "enable_checkpointing": True}
        bench.fit(bench.new(), callbacks=[KeepLast()], **kept_in)
        path = newest_good(Path(folder) / "checkpoints")
        bench.need(path is not None, "no checkpoint was written")
        again = bench.fit(bench.new(), rounds=2, resume=path, callbacks=[KeepLast()], **kept_in)
    return bits(whole(again), bench.alone)


def watching(bench: Bench) -> Measured:
    """With every default callback and both loggers."""
    with tempfile.TemporaryDirectory() as folder:
        watchers = [watch() for watch in callbacks.DEFAULTS.values()]
        loggers = run_loggers(folder, "check")
        watched = whole(bench.fit(bench.new(), rounds=2, callbacks=watchers, logger=loggers, default_root_dir=folder))
    return bits(watched, bench.alone)


def engine(bench: Bench) -> Measured:
    """Clients of a step in one stroke, against one after another."""
    bench.need(bench.method.stacked, "client_engine is loop, which runs them one after another")
    found = [bench.exact(bench.new(client_engine=way), None, 2) for way in ("stacked", "loop")]
    return Measured(furthest(*found), bench.rounding)


def judging(bench: Bench) -> Measured:
    """Validation after every round, and once more at the end: weights, buffers and torch's generator."""
    method = bench.fit(bench.new(), rounds=2, limit_val_batches=1.0)
    judged = whole(method)
    before, generator = kept(method), torch.get_rng_state()
    bench.judge(method)
    left_alone = bits(
        {**kept(method), "torch's generator": torch.get_rng_state()}, before | {"torch's generator": generator}
    )
    return bits(judged, bench.alone) if left_alone.holds else left_alone


# --- what is not finite -----------------------------------------------------------------------------------------------


def finite_guard(bench: Bench) -> Measured:
    """A NaN in the loss of the second batch, and then in one client's inputs; weights with a NaN, none allowed."""
    spoilt = with_loss_that_fails(bench.new())
    stops = [stops_in_time(bench, spoilt, bench.few)]
    said = "NaN in the loss"
    if bench.few.example().is_floating_point() and lets_nan_through(bench):
        last = len(bench.few.population.rows) - 1
        stops.append(stops_in_time(bench, bench.new(participants=last + 1), bench.few.poisoned(last)))
        said += " and in a client's inputs"
    return Measured(max(stops), 0, said)


def stops_in_time(bench: Bench, method: SplitMethod, data: FewRows) -> float:
    """How many tensors of the network hold a NaN when training has stopped; infinite when nothing stopped it."""
    try:
        bench.fit(method, data)
    except NonFiniteError:
        return sum(not bool(tensor.isfinite().all()) for tensor in method.parameters())
    return math.inf


def with_loss_that_fails(method: SplitMethod) -> SplitMethod:
    """The method whose loss is NaN from the second time on."""
    own, calls = method.loss, []

    def spoilt(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        return own(logits, labels) * (math.nan if len(calls) > 1 else 1.0)

    method.loss = spoilt  # type: ignore[method-assign]
    return method


def lets_nan_through(bench: Bench) -> bool:
    """Whether the network's outputs are NaN where its inputs are."""
    network = bench.make({}).backbone[0].eval()
    with torch.no_grad():
        outputs: Tensor = network(torch.full_like(bench.few.example(), math.nan))
    return bool(outputs.isnan().any())


# --- names and fingerprints -------------------------------------------------------------------------------------------


def relabelled(bench: Bench) -> Measured:
    """All take part, each with all of its rows at once, under each other's numbers."""
    need_plain_layers(bench)
    everybody = {"participants": len(bench.few.population.rows), "batch_size": None, "local_epochs": 1}
    seen = Seen()
    method = with_rates(bench.new(**everybody), 0.1, 0.1)
    plans = plans_of(method)
    plain = bench.exact(method, bench.few, 1, seen)
    need_one_meeting(bench, seen)
    bench.need(bool(plans[0].batches), "clients arrive by a clock that goes by their numbers")
    for step in (1, 2, 3):
        other = with_rates(bench.new(**everybody, seed=method.seed + step), 0.1, 0.1)
        drawn = furthest(bench.exact(other, bench.few), plain) > bench.rounding
        bench.need(not drawn, "the method draws at random in every round, by the clients' numbers")
    renamed = with_rates(bench.new(**everybody), 0.1, 0.1)
    return Measured(furthest(bench.exact(renamed, bench.few.renamed()), plain), bench.rounding)


def need_one_meeting(bench: Bench, seen: Seen) -> None:
    """Not applicable where one server half meets the clients one after another."""
    met: dict[int, list[tuple[int, ...]]] = {}
    for event in seen.of(ServerStep):
        met.setdefault(event.branch, []).append(event.client_ids)
    in_turn = any(len(set(clients)) > 1 for clients in met.values())
    bench.need(not in_turn, "the server half meets the clients one after another, in the order of their numbers")


class Prints(Bench):
    """A bench that can also deal the data anew."""

    def __init__(self, deal: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.deal = deal


def fingerprints(bench: Bench) -> Measured:
    """Partition and client schedule of the whole population, made anew; one for each that differs."""
    if not isinstance(bench, Prints):
        raise NotApplicable("the data were handed over ready-made")
    again = bench.deal()
    again.setup("fit")
    one, other = (data.population.fingerprint for data in (bench.data, again))
    known = [schedule_of(bench, data) for data in (bench.data, again)]
    said = f"partition {one}" + (f", schedule {known[0]}" if known[0] else ", the schedule follows from training")
    return Measured((one != other) + (known[0] != known[1]), 0, said)


def schedule_of(bench: Bench, data: Any) -> str:
    """Fingerprint of the participants of ten rounds; empty where they depend on training."""
    method = bench.make({})
    method.prepare(data, "fit")
    method.selection.prepare(data.population, data.num_classes, method.participants, method.step_rows)
    return schedule_fingerprint(method.schedule(10)) if method.knows_schedule else ""
