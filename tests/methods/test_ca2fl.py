"""CA2FL: its box in closed form on quadratics, its limits, what it caches; and that it is FedBuff at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sfl.core.aggregators import Median
from lightning_sfl.core.cached_updates import CachedUpdates
from lightning_sfl.core.clock import Cell
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, RoundEnd
from lightning_sfl.methods import CA2FL, FedAvg, FedBuff, SplitMethod
from tests.methods.quadratics import clients, half_square, line
from tests.tiny import Recorder, build, differing, fit, furthest, network, rows, sgd, whole

LR, STEPS, START = 0.1, 3, 0.5
A, B, SIZES = (1.0, 3.0, 0.5, 2.0, 1.5), (0.0, 1.0, -2.0, 4.0, -1.0), (1, 5, 2, 3, 1)
SPREAD = Cell(compute_flops=(1e6, 1e7))
RICH = {"dropout": 0.2, "norm": True}
KINDS = ["mean", "cached_sum"]


class Lines(Recorder):
    """w after every round, and who handed in, as (client, missed), in the order in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self.w: list[float] = [START]
        self.came: list[list[tuple[int, int]]] = []

    def on_round_end(self, module: SplitMethod, event: RoundEnd) -> None:
        super().on_round_end(module, event)
        self.w.append(float(whole(module)["lower.w"]))
        ends = [each for each in self.of(ClientEnd) if each.round == event.round and each.finished]
        self.came.append([(each.client_id, each.missed) for each in ends])


def on_a_line(monkeypatch: pytest.MonkeyPatch, cls: type[SplitMethod] = CA2FL, **options: Any) -> Lines:
    monkeypatch.setattr(SplitMethod, "loss", half_square)
    given = {"participants": 3, "batch_size": None, "local_steps": STEPS, "cell": SPREAD, **options}
    seen = Lines()
    fit(build(cls, line(START), "lower", client_optimizer=sgd(LR), **given), clients(A, B, SIZES), 8, [seen])
    return seen


def by_hand(came: list[list[tuple[int, int]]], calibration: str, weighting: str) -> list[float]:
    """w after every round, from nothing but who came when and how late."""
    share = SIZES if weighting == "samples" else (1,) * len(A)
    total = sum(share)
    w, cached = [START], [0.0] * len(A)
    for buffer in came:
        moved = [(B[k] - w[len(w) - 1 - missed]) * (1 - (1 - LR * A[k]) ** STEPS) for k, missed in buffer]
        before = list(cached)
        for (k, _), update in zip(buffer, moved, strict=True):
            cached[k] = update  # of one that is there twice the later
        known = cached if calibration == "cached_sum" else before
        v = sum(p * h for p, h in zip(share, known, strict=True)) / total
        if calibration == "mean":
            terms = [share[k] * (update - before[k]) for (k, _), update in zip(buffer, moved, strict=True)]
            v += sum(terms) / sum(share[k] for k, _ in buffer)
        w.append(w[-1] + v)
    return w


# --- the box ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibration", KINDS)
@pytest.mark.parametrize("weighting", ["uniform", "samples"])
@pytest.mark.parametrize("model_buffer", [1, 2, None])
def test_closed_form(monkeypatch: pytest.MonkeyPatch, calibration: Any, weighting: Any, model_buffer: Any) -> None:
    options = {"calibration": calibration, "weighting": weighting, "model_buffer": model_buffer}
    seen = on_a_line(monkeypatch, **options)
    assert [len(buffer) for buffer in seen.came] == [model_buffer or 3] * 8
    assert sum(missed > 0 for buffer in seen.came for _, missed in buffer) > 2
    assert seen.w == pytest.approx(by_hand(seen.came, calibration, weighting), abs=1e-12)
    other = by_hand(seen.came, KINDS[calibration == "mean"], weighting)
    assert max(abs(one - two) for one, two in zip(seen.w, other, strict=True)) > 1e-2


@pytest.mark.parametrize("calibration", KINDS)
def test_weights_are_those_of_the_calibration_unless_given(monkeypatch: pytest.MonkeyPatch, calibration: Any) -> None:
    """Uniform in the paper, shares of samples in the released code."""
    seen = on_a_line(monkeypatch, calibration=calibration)
    weighting = {"mean": "uniform", "cached_sum": "samples"}[calibration]
    assert seen.w == pytest.approx(by_hand(seen.came, calibration, weighting), abs=1e-12)


@pytest.mark.parametrize("calibration", KINDS)
def test_of_a_client_that_is_there_twice_the_later_update_is_cached(
    monkeypatch: pytest.MonkeyPatch, calibration: Any
) -> None:
    """Two slots with places for four in the buffer; whoever comes twice is late at first and then fresh."""
    cell = Cell(compute_flops=(1e5, 1e7))
    options = {"calibration": calibration, "weighting": "uniform", "cell": cell}
    seen = on_a_line(monkeypatch, participants=2, model_buffer=4, **options)
    twice = [buffer for buffer in seen.came for k in range(5) if len({m for c, m in buffer if c == k}) > 1]
    assert twice
    assert seen.w == pytest.approx(by_hand(seen.came, calibration, "uniform"), abs=1e-12)
    first_counts = [list(reversed(buffer)) for buffer in seen.came]
    assert by_hand(first_counts, calibration, "uniform") != pytest.approx(seen.w, abs=1e-6)


def test_the_mean_is_kept_up_with_the_cache() -> None:
    """p = (1/2, 1/4, 1/4): h = 2/2 + 8/4 = 3, then with -4 for 2, 3 - 6/2 = 0, then 0 + 16/4."""
    cache = CachedUpdates({0: 0.5, 1: 0.25, 2: 0.25})
    assert cache.beyond(1) == {}
    for updates, h in (({0: 2.0, 1: 8.0}, 3.0), ({0: -4.0}, 0.0), ({2: 16.0}, 4.0)):
        cache.take({client: {"w": torch.tensor(value)} for client, value in updates.items()})
        assert float(cache.mean["w"]) == h
    assert [float(cache.beyond(client)["w"]) for client in range(3)] == [8.0, -4.0, -12.0]


# --- limits -----------------------------------------------------------------------------------------------------------


def run(cls: type[SplitMethod], rounds: int, sizes: tuple[int, ...] = (8, 5, 9, 8, 6), **options: Any) -> Any:
    dtype = options.pop("dtype", torch.float32)
    cell = {} if cls is FedAvg else {"cell": SPREAD}
    given = {"participants": 3, "batch_size": 4, "local_steps": 3, "client_optimizer": sgd(0.1, 0.9), **cell}
    callbacks = options.pop("callbacks", ())
    method = build(cls, network(**RICH, dtype=dtype), **{**given, **options})
    return fit(method, rows(sizes, dtype=dtype), rounds, callbacks)


def test_the_first_merge_is_that_of_fedbuff_bit_for_bit() -> None:
    buffered = [whole(run(FedBuff, rounds)) for rounds in (1, 3)]
    calibrated = [whole(run(CA2FL, rounds)) for rounds in (1, 3)]
    assert differing(buffered[0], calibrated[0]) == []
    assert furthest(buffered[1], calibrated[1]) > 1e-3


@pytest.mark.parametrize("calibration", KINDS)
def test_where_all_clients_are_in_every_buffer_it_is_fedavg(calibration: Any) -> None:
    common = {"participants": 5, "dtype": torch.float64}
    together = whole(run(CA2FL, 4, calibration=calibration, participation="per_round", **common))
    for weighting in ("uniform", "samples"):
        away = furthest(together, whole(run(FedAvg, 4, weighting=weighting, **common)))
        assert (away < 1e-12) is (weighting == {"mean": "uniform", "cached_sum": "samples"}[calibration])


@pytest.mark.parametrize("calibration", KINDS)
def test_clients_without_rows_are_not_among_all_clients(calibration: Any) -> None:
    with_them = run(CA2FL, 4, (8, 5, 9, 8, 6, 0, 0), calibration=calibration)
    assert differing(whole(with_them), whole(run(CA2FL, 4, calibration=calibration))) == []
    assert {*with_them.cached.shares} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("calibration", KINDS)
def test_the_servers_rate_scales_the_step(calibration: Any) -> None:
    common = {"dtype": torch.float64, "calibration": calibration}
    full, half = (run(CA2FL, 1, merge_optimizer=factory, **common) for factory in (None, sgd(0.5)))
    start = dict(network(**RICH, dtype=torch.float64).state_dict())
    moved, moved_by_half = whole(full), whole(half)
    names = [name for name, _ in network(**RICH).named_parameters()]
    assert furthest({n: moved[n] for n in names}, {n: start[n] for n in names}) > 1e-2
    for name in names:
        wanted = start[name] + 0.5 * (moved[name] - start[name])
        torch.testing.assert_close(moved_by_half[name], wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("calibration", KINDS)
def test_batch_norm_statistics_are_those_of_the_buffer(calibration: Any) -> None:
    """Averaged as they come: nothing is cached of them, and nothing is added."""
    seen = Ends()
    method = run(CA2FL, 5, dtype=torch.float64, calibration=calibration, weighting="uniform", callbacks=[seen])
    last = [state for event, state in zip(seen.of(ClientEnd), seen.states, strict=True) if event.finished][-3:]
    after = whole(method)
    for name in ("bn1.running_mean", "bn2.running_var"):
        torch.testing.assert_close(after[name], sum(state[name] for state in last) / 3, rtol=0, atol=1e-13)
    assert after["bn1.num_batches_tracked"] == max(state["bn1.num_batches_tracked"] for state in last)
    assert not [name for name in method.cached.mean if "running" in name or "tracked" in name]


class Ends(Recorder):
    """Whole networks at every end."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict[str, Tensor]] = []

    def on_client_end(self, module: SplitMethod, event: ClientEnd) -> None:
        super().on_client_end(module, event)
        halves = (event.client_half, event.server_half)
        self.states.append({n: t.clone() for half in halves for n, t in half.state_dict().items()})  # type: ignore[union-attr]


# --- memory, settings -------------------------------------------------------------------------------------------------


def test_the_cache_holds_those_who_were_there() -> None:
    seen = Recorder()
    method = run(CA2FL, 2, model_buffer=1, callbacks=[seen])
    assert {*method.cached.kept} == {event.client_id for event in seen.of(ClientEnd) if event.finished}
    assert len(method.cached.kept) <= 2


@pytest.mark.parametrize("calibration", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"bn_buffers": "local"}, {"max_staleness": 0, "merge_optimizer": sgd(0.5, 0.9)}]
)
def test_it_goes_on_bit_for_bit_in_the_middle(calibration: str, options: dict[str, Any], tmp_path: Path) -> None:
    found: list[Any] = []
    for resume in (None, tmp_path / "epoch=2.ckpt"):
        settings = {"calibration": calibration, "client_optimizer": sgd(0.1, 0.9), "local_steps": 3, **options}
        method = build(CA2FL, network(0.2, norm=True), participants=3, batch_size=4, cell=SPREAD, **settings)
        keep, seen = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1), Recorder()
        fit(method, rows((8, 5, 9, 8, 6)), 6, [keep, seen], resume=resume, enable_checkpointing=True)
        found.append((method, [event.scalars for event in seen.of(RoundEnd)]))
    (straight, told), (resumed, told_again) = found
    assert told[3:] == told_again
    assert differing(whole(straight), whole(resumed)) == []
    assert differing(straight.cached.mean, resumed.cached.mean) == []
    assert [*straight.cached.kept] == [*resumed.cached.kept]
    for client, update in straight.cached.kept.items():
        assert differing(update, resumed.cached.kept[client]) == []
    if "max_staleness" in options:
        assert sum(scalars["staleness/dropped"] for scalars in told_again) > 0
        assert sum(scalars["staleness/dropped"] for scalars in told[:3]) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration": "sum"}, "calibration='sum' is not allowed: one of ('mean', 'cached_sum')"),
        ({"weighting": "rows"}, "weighting='rows' is not allowed: uniform or samples in CA2FL"),
        ({"aggregator": Median()}, "aggregator='Median' is not allowed: none in CA2FL, as the server keeps updates"),
    ],
)
def test_settings_without_a_meaning(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(CA2FL, **options)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
