"""Updates that come too late are dropped: who, what the merge is then, that rounds end, and that it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sfl.core.clock import Cell
from lightning_sfl.core.dynamics import Dynamics
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, ClientStart, CutGradient, RoundEnd, ServerStep
from lightning_sfl.core.privacy.masking import GradientMasking
from lightning_sfl.methods import CA2FL, GAS, FedAsync, FedAvg, FedBuff, SplitMethod
from tests.methods.quadratics import clients, half_square, line
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, weights, whole

LR, STEPS, START = 0.1, 3, 0.5
A, B = (1.0, 3.0, 0.5, 2.0, 1.5), (0.0, 1.0, -2.0, 4.0, -1.0)
SIZES = (8, 5, 9, 8, 6)
SPREAD = Cell(compute_flops=(1e6, 1e7))
ALL = [FedBuff, CA2FL, FedAsync, GAS]
MODEL_BUFFER = {FedAsync: {"arrivals": 2}}
RICH = {"dropout": 0.2, "norm": True}


def buffer_of_two(cls: type[SplitMethod]) -> dict[str, Any]:
    return MODEL_BUFFER.get(cls, {"model_buffer": 2})


class Hands(Recorder):
    """Who handed in, told from outside, and the client half after every round."""

    def __init__(self) -> None:
        super().__init__()
        self.after: list[dict[str, Tensor]] = []

    def on_round_end(self, module: SplitMethod, event: RoundEnd) -> None:
        super().on_round_end(module, event)
        self.after.append(weights(module.client_half))

    def of_round(self, index: int) -> list[ClientEnd]:
        """In the order in which they came: finished, or with somebody else in their slot in the same round."""
        mine = [event for event in self.events if isinstance(event, (ClientStart, ClientEnd)) and event.round == index]
        ends = [(place, event) for place, event in enumerate(mine) if isinstance(event, ClientEnd)]
        return [
            event
            for place, event in ends
            if event.finished or any(isinstance(e, ClientStart) and e.slot == event.slot for e in mine[place:])
        ]

    def scalars(self, tag: str) -> list[float]:
        return [event.scalars[tag] for event in self.of(RoundEnd)]


def run(cls: type[SplitMethod], rounds: int = 6, **options: Any) -> tuple[Any, Hands]:
    seen, cell = Hands(), {} if cls is FedAvg else {"cell": SPREAD}
    given = {"participants": 3, "batch_size": 4, "local_steps": 3, "client_optimizer": sgd(0.1, 0.9), **cell}
    net = network(**RICH, dtype=options.pop("dtype", torch.float32))
    method = build(cls, net, **{**given, **options})
    dtype = next(net.parameters()).dtype
    fit(method, rows(SIZES, dtype=dtype), rounds, [seen])
    return method, seen


# --- who is dropped, and what the merge is ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("most", [0, 1])
def test_late_ones_are_dropped_and_the_round_waits_for_others(cls: type[SplitMethod], most: int) -> None:
    _, seen = run(cls, 8, max_staleness=most, **buffer_of_two(cls))
    for index, (dropped, highest) in enumerate(
        zip(seen.scalars("staleness/dropped"), seen.scalars("staleness/max"), strict=True)
    ):
        came = seen.of_round(index)
        assert [event.finished for event in came] == [event.missed <= most for event in came]
        counted = [event.missed for event in came if event.finished]
        assert len(counted) == 2
        assert dropped == len(came) - 2
        assert highest == max(counted)
    assert sum(seen.scalars("staleness/dropped")) >= 2
    assert max(seen.scalars("staleness/max")) == most


def end_of(client: int, start: float) -> float:
    return B[client] + (1 - LR * A[client]) ** STEPS * (start - B[client])


def line_of(seen: Hands) -> list[float]:
    """w at the start and after every round."""
    return [START, *(float(state["lower.w"]) for state in seen.after)]


def on_a_line(monkeypatch: pytest.MonkeyPatch, cls: type[SplitMethod], **options: Any) -> Hands:
    monkeypatch.setattr(SplitMethod, "loss", half_square)
    seen = Hands()
    given = {"participants": 3, "batch_size": None, "local_steps": STEPS, "cell": SPREAD, **options}
    fit(build(cls, line(START), "lower", client_optimizer=sgd(LR), **given), clients(A, B), 8, [seen])
    return seen


@pytest.mark.parametrize("most", [0, 1])
def test_the_merge_of_fedbuff_in_closed_form(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    seen = on_a_line(monkeypatch, FedBuff, model_buffer=2, max_staleness=most)
    w = [START]
    for index in range(8):
        starts = [(e.client_id, w[len(w) - 1 - e.missed]) for e in seen.of_round(index) if e.missed <= most]
        w.append(w[-1] + sum(end_of(client, start) - start for client, start in starts) / 2)
    assert line_of(seen) == pytest.approx(w, abs=1e-12)
    assert sum(seen.scalars("staleness/dropped")) > 0
    everything = on_a_line(monkeypatch, FedBuff, model_buffer=2)
    assert max(abs(one - two) for one, two in zip(line_of(seen), line_of(everything), strict=True)) > 1e-2


@pytest.mark.parametrize("most", [0, 1])
def test_the_merge_of_fedasync_in_closed_form(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Only what is mixed in makes a version, and a round."""
    seen = on_a_line(monkeypatch, FedAsync, arrivals=2, mixing=0.5, max_staleness=most)
    w, versions = [START], [START]
    for index in range(8):
        for event in seen.of_round(index):
            if event.missed <= most:
                start = versions[len(versions) - 1 - event.missed]
                versions.append(0.5 * versions[-1] + 0.5 * end_of(event.client_id, start))
        assert len(versions) == 1 + 2 * (index + 1)
        w.append(versions[-1])
    assert line_of(seen) == pytest.approx(w, abs=1e-12)
    assert sum(seen.scalars("staleness/dropped")) > 0


def test_what_ca2fl_drops_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_a_line(monkeypatch, CA2FL, model_buffer=1, max_staleness=0)
    w, cached = [START], [0.0] * 5
    for index in range(8):
        ((k, before),) = [(e.client_id, cached[e.client_id]) for e in seen.of_round(index) if e.missed == 0]
        update, h = end_of(k, w[-1]) - w[-1], sum(cached) / 5
        w.append(w[-1] + h + update - before)
        cached[k] = update
    assert line_of(seen) == pytest.approx(w, abs=1e-12)
    assert sum(seen.scalars("staleness/dropped")) > 0


def test_gas_averages_those_that_count() -> None:
    _, seen = run(GAS, 6, model_buffer=2, max_staleness=0, weighting="samples", dtype=torch.float64)
    ends = list(zip(seen.of(ClientEnd), seen.ends, strict=True))
    for index, after in enumerate(seen.after):
        came = [(event.weight, end) for event, end in ends if event.round == index and event.finished]
        assert len(came) == 2
        total = sum(weight for weight, _ in came)
        wanted = sum(weight * end["fc1.weight"] for weight, end in came) / total
        torch.testing.assert_close(after["fc1.weight"], wanted, rtol=0, atol=1e-13)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_where_nobody_is_that_late_nothing_changes(cls: type[SplitMethod]) -> None:
    (plain, seen), (bounded, told) = run(cls), run(cls, max_staleness=100)
    assert differing(whole(plain), whole(bounded)) == []
    assert not [event for event in seen.of(RoundEnd) if "staleness/dropped" in event.scalars]
    assert told.scalars("staleness/dropped") == [0] * 6


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("arrival", ["clock", "random"])
def test_rounds_end_however_little_is_borne_with(cls: type[SplitMethod], arrival: str) -> None:
    """Whoever starts after the last merge is in time, so at most all others are dropped before it."""
    for slots in (1, 3):
        _, seen = run(cls, 6, max_staleness=0, participants=slots, arrival=arrival, **buffer_of_two(cls))
        merges = 2 if cls is FedAsync else 1
        assert max(seen.scalars("staleness/dropped")) <= merges * (slots - 1)
        assert (sum(seen.scalars("staleness/dropped")) > 0) is (slots > 1)


@pytest.mark.parametrize("cls", [FedBuff, CA2FL])
def test_who_starts_together_is_never_late_for_a_buffer(cls: type[SplitMethod]) -> None:
    common = {"participation": "per_round", "weighting": "samples"}
    bounded, seen = run(cls, 3, max_staleness=0, **common)
    assert seen.scalars("staleness/dropped") == [0, 0, 0]
    assert differing(whole(bounded), whole(run(cls, 3, **common)[0])) == []
    if cls is FedBuff:
        assert differing(whole(bounded), whole(run(FedAvg, 3, weighting="samples")[0])) == []


@pytest.mark.parametrize(("most", "counted"), [(0, 1), (1, 2), (2, 3)])
def test_in_fedasync_of_those_who_start_together_the_first_count(most: int, counted: int) -> None:
    """The second misses one merge, the third two; the round is over when all have come."""
    _, seen = run(FedAsync, 3, max_staleness=most, participation="per_round", mixing=0.5)
    assert seen.scalars("staleness/dropped") == [3 - counted] * 3
    assert seen.scalars("staleness/max") == [counted - 1] * 3
    for index in range(3):
        ends = [event for event in seen.of(ClientEnd) if event.round == index]
        assert [event.finished for event in ends] == [place < counted for place in range(3)]


# --- beside other options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["method", "merged"])
def test_matched_server_steps_know_how_many_uploads_come(start: Any) -> None:
    """Played through beforehand, dropped clients and all: every round has the steps it was asked for, and no more."""
    options = {"model_buffer": 2, "max_staleness": 0, "dynamics": Dynamics(server_steps=3, start=start)}
    _, seen = run(GAS, 6, **options)
    for index in range(6):
        steps = [event for event in seen.of(ServerStep) if event.round == index]
        uploads = [event for event in seen.of(CutGradient) if event.round == index]
        assert len(steps) == 3
        sizes = [len(event.client_ids) for event in steps]
        assert sum(sizes) == len(uploads)
        assert max(sizes) - min(sizes) <= 1
    assert (sum(seen.scalars("staleness/dropped")) > 0) is (start == "method")


@pytest.mark.parametrize("cls", ALL)
def test_it_goes_on_bit_for_bit_after_a_drop(cls: type[SplitMethod], tmp_path: Path) -> None:
    found: list[Any] = []
    for resume in (None, tmp_path / "epoch=2.ckpt"):
        options = {"participants": 3, "batch_size": 4, "local_steps": 3, "cell": SPREAD, **buffer_of_two(cls)}
        method = build(cls, network(**RICH), client_optimizer=sgd(0.1, 0.9), max_staleness=0, **options)
        keep, seen = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1), Hands()
        fit(method, rows(SIZES), 6, [keep, seen], resume=resume, enable_checkpointing=True)
        found.append((method, seen.of(RoundEnd)))
    (straight, told), (resumed, told_again) = found
    assert [event.scalars for event in told[3:]] == [event.scalars for event in told_again]
    for part in (told[:3], told[3:]):
        assert sum(event.scalars["staleness/dropped"] for event in part) > 0
    assert straight.visits.state() == resumed.visits.state()
    assert differing(whole(straight), whole(resumed)) == []


@pytest.mark.parametrize("most", [-1, -5])
@pytest.mark.parametrize("cls", ALL)
def test_it_is_no_negative_number(cls: type[SplitMethod], most: int) -> None:
    with pytest.raises(ConfigError, match=f"^max_staleness={most} is not allowed: an integer >= 0, or null$"):
        build(cls, max_staleness=most)


@pytest.mark.parametrize("cls", [FedBuff, GAS])
def test_it_does_not_go_with_privacy(cls: type[SplitMethod]) -> None:
    """A client that was dropped has kept its residual and spent its noise, and nobody would know."""
    with pytest.raises(ConfigError, match="max_staleness=1 is not allowed: null with privacy GradientMasking: updates"):
        fit(build(cls, max_staleness=1, privacy=GradientMasking()), rows(SIZES))
    assert furthest(*[whole(fit(build(cls, privacy=p), rows(SIZES))) for p in (None, GradientMasking())]) > 0
