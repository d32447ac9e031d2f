"""USFL: balanced rows drawn once an epoch, rings that go on, who takes part, and what cannot be balanced."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sfl.core.balancing import Balancing
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.events import ClientEnd, ClientStep, RoundStart, ServerStep
from lightning_sfl.core.gradient_shuffle import GradientShuffle
from lightning_sfl.core.label_selection import LabelAware
from lightning_sfl.core.rounds import Plan
from lightning_sfl.methods import USFL, SplitMethod
from tests.methods.test_usfl import NONE, run
from tests.tiny import NUM_FEATURES, Recorder, Rows, build, differing, fit, network, rows, stretches, whole


def test_clients_sit_sweeps_out() -> None:
    recorder = run(rows((5, 3, 1)), balancing=NONE, server_batch_size=4, local_epochs=2)
    assert [event.client_ids for event in recorder.of(ServerStep)] == [(0, 1), (0, 1), (0, 1, 2)] * 2
    assert [event.rows for event in recorder.of(ServerStep)] == [3] * 6
    assert [len(event.turns) for event in recorder.of(ClientStep)] == [2, 2, 3] * 2
    assert {event.client_id: (event.steps, event.rows) for event in recorder.of(ClientEnd)} == {
        0: (6, 10), 1: (6, 6), 2: (2, 2),
    }  # fmt: skip


@pytest.mark.parametrize(("sizes", "options", "steps"), [
    ((5, 4, 9), {"batch_size": 4}, 2 * 2),  # joint batches of 18, 10, 7, 6, ... rows; 12 are wanted
    ((5, 4, 9), {"batch_size": 2}, 2 * 4),
    ((8, 8), {"server_batch_size": 4}, 2 * 4),
    ((8, 8), {"batch_size": None}, 2 * 1),
    ((8, 8), {"server_batch_size": 4, "local_steps": 7}, 7),
    ((20, 12, 7), {"server_batch_size": 10}, 2 * 4),
    ((20, 12, 7), {"server_batch_size": 10, "batch_schedule": "fixed"}, 2 * 3),
])  # fmt: skip
def test_server_steps(sizes: tuple[int, ...], options: dict[str, Any], steps: int) -> None:
    recorder = run(rows(sizes), balancing=NONE, **{"local_epochs": 2, **options})
    assert recorder.count(ServerStep) == steps


def planned(data: Rows, rounds: int = 1, **options: Any) -> list[Plan]:
    plans: list[Plan] = []

    class Keep(Recorder):
        def on_round_start(self, module: SplitMethod, event: RoundStart) -> None:
            plans.append(module.feed.plan)

    fit(USFL(network(), "relu1", **options), data, rounds, [Keep()])
    return plans


def visits(plan: Plan) -> Counter[int]:
    return Counter(int(row) for batches in plan.batches for batch in batches for row in batch.rows)


def test_an_epoch_is_one_pass_without_replacement() -> None:
    for plan in planned(rows((5, 4, 9)), 3, balancing=NONE, batch_size=4, local_epochs=2):
        assert visits(plan) == Counter(dict.fromkeys(range(18), 2))


def test_rows_are_balanced_and_their_rings_go_round() -> None:
    """8 rows of class 0 and 2 of class 1: every round 2 of each, so that 4 rounds use all of class 0 once."""
    data = Rows(torch.zeros(10, NUM_FEATURES), torch.tensor([0] * 8 + [1] * 2), [range(10)])
    plans = planned(data, 4, server_batch_size=2, balancing=Balancing(allow_missing_labels=True))
    seen = [visits(plan) for plan in plans]
    assert all(sum(n for row, n in each.items() if row < 8) == 2 for each in seen)
    assert sum(seen, Counter()) == Counter({**dict.fromkeys(range(8), 1), 8: 4, 9: 4})


def test_replication_repeats_rows() -> None:
    data = Rows(torch.zeros(9, NUM_FEATURES), torch.tensor([0] * 7 + [1] * 2), [range(9)])
    (plan,) = planned(data, balancing=Balancing("replication", allow_missing_labels=True))
    assert visits(plan) == Counter({**dict.fromkeys(range(7), 1), 7: 4, 8: 3})


def test_planning_again_changes_nothing() -> None:
    method = USFL(network(), "relu1", balancing=Balancing(allow_missing_labels=True), batch_size=4)
    fit(method, rows(), 3)
    one, other = method.plan(3), method.plan(3)
    for these, those in zip(one.batches, other.batches, strict=True):
        assert all(np.array_equal(a.rows, b.rows) for a, b in zip(these, those, strict=True))
    assert method.rings.pointers.any()


def test_who_has_no_row_to_use_does_not_take_part() -> None:
    """Of class 0 the target leaves one row, and the larger client has it."""
    balancing = Balancing("target", 1, "largest_remainder", allow_missing_labels=True)
    recorder = run(Rows(torch.zeros(4, NUM_FEATURES), torch.zeros(4, dtype=torch.int64), [range(3), range(3, 4)]),
                   balancing=balancing)  # fmt: skip
    assert [event.participants for event in recorder.of(RoundStart)] == [(0,)]
    assert [event.client_id for event in recorder.of(ClientEnd)] == [0]


def test_additional_epochs_make_up_for_trimmed_rows() -> None:
    """30 and 10 rows of two classes: trimming leaves 20 and takes 20 away, which is 2 joint batches of 10."""
    y = torch.tensor([0] * 30 + [1] * 10)
    data = Rows(torch.zeros(40, NUM_FEATURES), y, [[*range(15), *range(30, 35)], [*range(15, 30), *range(35, 40)]])
    options = {"server_batch_size": 10, "batch_schedule": "fixed",
               "balancing": Balancing(allow_missing_labels=True)}  # fmt: skip
    assert run(data, **options).count(ServerStep) == 2
    assert run(data, **options, additional_epochs=True).count(ServerStep) == 2 * (1 + 2)


def test_missing_classes() -> None:
    with pytest.raises(ConfigError, match=r"balancing\.allow_missing_labels=False") as refusal:
        fit(USFL(network(), "relu1"), Rows(torch.zeros(4, NUM_FEATURES), torch.tensor([0, 1, 2, 0]), [range(4)]))
    assert "\n" not in str(refusal.value)


# --- who takes part, and what cannot be balanced ----------------------------------------------------------------------


def test_label_aware_participants_cover_the_classes() -> None:
    data = rows((9, 8, 7, 9, 8, 7, 9, 8))
    method = USFL(network(), "relu1", participants=2, selection=LabelAware(usage="unused"), batch_size=4)
    recorder = Recorder()
    fit(method, data, 6, [recorder])
    for event in recorder.of(RoundStart):
        held = np.concatenate([data.population.rows[client] for client in event.participants])
        assert set(data.population.y[held].tolist()) == {0, 1, 2, 3}
    picks = [client for event in recorder.of(RoundStart) for client in event.participants]
    assert method.selection.picks[:, 0].unique().tolist() == [2, 3, 4, 5]
    assert len(set(picks)) > 4
    assert method.selection.uses.sum().item() == sum(event.rows for event in recorder.of(ClientEnd))


def test_a_selection_that_served_before_begins_anew() -> None:
    selection = LabelAware(usage="fresh")
    runs = [run(rows((9, 8, 7, 9)), rounds=4, participants=2, selection=selection, batch_size=2) for _ in range(2)]
    assert runs[0].losses == runs[1].losses


def test_clients_are_met_in_the_order_chosen() -> None:
    method, recorder = build(USFL, participants=3, client_order="selected"), Recorder()
    fit(method, rows((4, 4, 4, 4)), 6, [recorder])
    chosen = [event.participants for event in recorder.of(RoundStart)]
    assert chosen == method.schedule(6)
    assert any(list(clients) != sorted(clients) for clients in chosen)


def test_what_depends_on_the_past_has_no_schedule() -> None:
    method = USFL(network(), "relu1", participants=2, selection=LabelAware(), batch_size=2)
    fit(method, rows((9, 8, 7)))
    with pytest.raises(ConfigError, match="selection='LabelAware' is not allowed: its choices depend"):
        method.schedule(3)
    assert any("chosen by LabelAware as training goes on" in line for line in method.describe())
    assert method.selection.picks.shape == (2, 2)


def texts() -> Rows:
    """Rows of five positions, each with a class of its own."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(10, 5, NUM_FEATURES, generator=draw)
    return Rows(x, torch.randint(0, 4, (10, 5), generator=draw), stretches((6, 4)))


def test_sequences_train_unbalanced_and_are_refused_otherwise() -> None:
    method = USFL(network(), "relu1", balancing=NONE, batch_size=2, gradient_shuffle=GradientShuffle("random"))
    assert differing(whole(fit(method, texts())), dict(network().state_dict())) != []
    refused: list[dict[str, Any]] = [
        {}, {"balancing": NONE, "weighting": "label_capped"},
        {"balancing": NONE, "gradient_shuffle": GradientShuffle("inplace")},
        {"balancing": NONE, "selection": LabelAware()},
    ]  # fmt: skip
    for options in refused:
        with pytest.raises(ConfigError, match="have no class per row") as refusal:
            fit(USFL(network(), "relu1", **options), texts())
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("key", "value"), [("server_batch_size", 0), ("batch_schedule", "greedy"),
                                            ("weighting", "capped")])  # fmt: skip
def test_ranges(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r} is not allowed: "):
        build(USFL, **{key: value})
