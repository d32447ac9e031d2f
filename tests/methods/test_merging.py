"""Aggregators in the loop: which halves they put together, where they are FedAvg, and whom they withstand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sfl.core.aggregators import (
    Aggregator,
    CosineWeighted,
    DeviationClipping,
    Krum,
    Median,
    NormClipping,
    TrimmedMean,
    Unbiased,
    WeightedAverage,
)
from lightning_sfl.core.attendance import Attendance
from lightning_sfl.core.errors import ConfigError
from lightning_sfl.core.oort import Oort
from lightning_sfl.core.rounds import Plan
from lightning_sfl.methods import (
    CA2FL,
    CFL,
    GAS,
    IFCA,
    SFL,
    SFLV1,
    Centralized,
    FedAsync,
    FedAvg,
    FedSGD,
    HoloGrad,
    MiniBatchSFL,
    MultiSFL,
    SplitLearning,
    SplitMethod,
)
from tests.every_method import METHODS
from tests.tiny import Recorder, Rows, build, differing, fit, furthest, network, rows, sgd, weights, whole

SIZES = (5, 4, 9, 2, 6)
ALONE = (FedAsync, CA2FL, SplitLearning, Centralized, HoloGrad, IFCA, CFL)
MERGING = [method for method in METHODS if method not in ALONE]
RULES: list[Aggregator] = [
    CosineWeighted(),
    CosineWeighted(reference="previous"),
    DeviationClipping(1.0),
    NormClipping(),
    Krum(1, 2),
    TrimmedMean(),
    Median(),
]


def run(cls: type[SplitMethod], rule: Aggregator | None = None, rounds: int = 2, **options: Any) -> dict[str, Any]:
    net = network(norm=options.pop("norm", False))
    return whole(fit(build(cls, net, aggregator=rule, **{"batch_size": 4, **options}), rows(SIZES), rounds))


@pytest.mark.parametrize("cls", MERGING)
def test_limits_are_the_plain_average(cls: type[SplitMethod]) -> None:
    plain = run(cls)
    assert differing(run(cls, WeightedAverage()), plain) == []
    assert furthest(run(cls, NormClipping(threshold=1e30)), plain) < 1e-6
    assert furthest(run(cls, DeviationClipping(threshold=1e30)), plain) < 1e-6


@pytest.mark.parametrize("cls", [SFL, SFLV1, FedAvg, FedSGD, MiniBatchSFL])
def test_limits_are_the_uniform_average(cls: type[SplitMethod]) -> None:
    uniform = run(cls, weighting="uniform")
    assert furthest(run(cls, TrimmedMean(0)), uniform) < 1e-6
    assert furthest(run(cls, Krum(0, 5)), uniform) < 1e-6
    assert furthest(uniform, run(cls)) > 1e-4


@pytest.mark.parametrize(
    ("cls", "rule"),
    [*((SFL, rule) for rule in RULES), *((cls, Median()) for cls in MERGING)],
    ids=lambda one: one.__name__ if isinstance(one, type) else type(one).__name__,
)
def test_a_rule_does_something_else_than_fedavg(cls: type[SplitMethod], rule: Aggregator) -> None:
    """With batch normalisation; whatever is merged differs, and is finite."""
    ruled, plain = run(cls, rule, norm=True), run(cls, norm=True)
    assert {"fc1.weight", "bn1.running_mean"} <= {*differing(ruled, plain)}
    assert all(bool(tensor.isfinite().all()) for tensor in ruled.values())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("cut_layer", ["fc1", "relu2"])
def test_a_client_with_both_halves_is_judged_as_a_whole(rule: Aggregator, cut_layer: str) -> None:
    """So SplitFed V1 stays FedAvg, bit for bit, and it does not matter where the network is cut."""

    def one(cls: type[SplitMethod], cut_layer: str) -> dict[str, Any]:
        method = build(cls, network(norm=True), cut_layer, aggregator=rule, batch_size=4)
        return whole(fit(method, rows(SIZES), 2))

    assert differing(one(SFLV1, cut_layer), one(FedAvg, cut_layer)) == []
    assert furthest(one(FedAvg, cut_layer), one(FedAvg, "relu1")) < 1e-6


def test_only_client_halves_are_merged_where_there_is_one_server_half() -> None:
    recorder = Recorder()
    method = fit(build(SFL, aggregator=Median(), batch_size=4), rows(SIZES), 1, [recorder])
    for name, tensor in method.client_half.state_dict().items():
        wanted = torch.stack([end[name] for end in recorder.ends]).quantile(0.5, dim=0)
        torch.testing.assert_close(tensor, wanted)


def test_gradients_are_judged_as_updates() -> None:
    """FedSGD with a rule is the same rule on FedAvg's updates after one full-batch step, for rules without a scale."""
    for rule in (CosineWeighted(), Krum(1), TrimmedMean(1), Median(), DeviationClipping(), NormClipping()):
        options = {"batch_size": None, "local_epochs": 1, "server_optimizer": sgd(0.1), "client_optimizer": sgd(0.1)}
        assert furthest(run(FedSGD, rule, **options), run(FedAvg, rule, **options)) < 1e-5


# --- even draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [FedAvg, SFL, FedSGD])
def test_an_unbiased_mean_is_the_average_where_rows_are_alike_or_all_take_part(cls: type[SplitMethod]) -> None:
    def trained(rule: Aggregator | None, sizes: tuple[int, ...], participants: int) -> dict[str, Any]:
        options = {"batch_size": None, "local_epochs": 1} if cls is FedSGD else {"batch_size": 4}
        return whole(fit(build(cls, aggregator=rule, participants=participants, **options), rows(sizes), 2))

    for sizes, participants in (((6,) * 5, 2), (SIZES, 5)):
        assert differing(trained(Unbiased(), sizes, participants), trained(None, sizes, participants)) == []
    assert furthest(trained(Unbiased(), SIZES, 2), trained(None, SIZES, 2)) > 1e-4


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (GAS, {}, "equally likely to be merged; here clients come and go on its own clock"),
        (SFL, {"selection": Oort()}, "equally likely to be merged; here Oort goes by training losses"),
        (SFL, {"attendance": Attendance(deadline_s=1.0)}, "here who is done in time goes by how many rows"),
        (FedAvg, {"attendance": Attendance([0.9] * 4 + [0.5])}, "here attendance.availability is not the same for all"),
        (SFL, {"weighting": "rows"}, "aggregator='Unbiased' is not allowed: with weighting samples; here it is rows"),
        (SplitLearning, {}, "aggregator='Unbiased' is not allowed: none in SplitLearning, as"),
    ],
)
def test_an_unbiased_mean_needs_even_draws(cls: type[SplitMethod], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        run(cls, Unbiased(), participants=3, **options)


def test_draws_are_even_where_all_have_the_same_chance_to_come() -> None:
    options: dict[str, Any] = {"rounds": 3, "participants": 3}
    listed, single = (run(FedAvg, Unbiased(), attendance=Attendance(each), **options) for each in ([0.6] * 5, 0.6))
    assert differing(listed, single) == []


# --- the previous update ----------------------------------------------------------------------------------------------


class Noting(CosineWeighted):
    """Keeps what each merge was told and went by."""

    def __init__(self) -> None:
        super().__init__(reference="previous")
        self.anchors: list[dict[str, Any]] = []
        self.went_by: list[Any] = []
        self.updates: list[torch.Tensor] = []

    def merge(self, states: Any, anchor: Any, weights: Any, buffers: Any = (), buffer_policy: Any = "average") -> Any:
        self.anchors.append({name: tensor.clone() for name, tensor in anchor.items() if name not in buffers})
        found = super().merge(states, anchor, weights, buffers, buffer_policy)
        rows = [torch.cat([(state[name] - anchor[name]).flatten() for name in self.anchors[-1]]) for state in states]
        self.updates.append(torch.stack(rows).double())
        self.went_by.append(self.previous)
        return found


@pytest.mark.parametrize(
    ("cls", "momentum"), [(SFL, None), (SFLV1, None), (FedAvg, 0.9), (SFL, 0.9), (MultiSFL, None), (GAS, 0.9)]
)
def test_the_previous_update_is_how_far_the_merged_network_came(cls: type[SplitMethod], momentum: float | None) -> None:
    """Whatever made it of the merge, a merge optimizer included; both halves where clients hand in both."""
    rule, story = Noting(), Recorder()
    options = {} if momentum is None else {"merge_optimizer": sgd(0.7, momentum)}
    method = fit(build(cls, network(norm=True), aggregator=rule, batch_size=4, **options), rows(SIZES), 3, [story])
    assert rule.went_by[0] is None
    halves = {"0.fc1.weight"} | ({"1.fc2.weight"} if cls in (SFLV1, FedAvg, MultiSFL) else set())
    assert {name for name in rule.anchors[0] if "fc" in name and "weight" in name} == halves
    for index in (1, 2):
        before, here = (
            torch.cat([tensor.flatten() for tensor in a.values()]) for a in rule.anchors[index - 1 : index + 1]
        )
        way = here.double() - before.double()
        torch.testing.assert_close(rule.went_by[index][0], rule.updates[index] @ way, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(rule.went_by[index][1], way.square().sum())
    assert float((method.client_half.state_dict()["fc1.weight"] - rule.anchors[2]["0.fc1.weight"]).abs().max()) > 0


@pytest.mark.parametrize("cls", [SFL, SFLV1, FedAvg, GAS])
def test_the_previous_update_is_in_checkpoints(cls: type[SplitMethod], tmp_path: Path) -> None:
    rule = CosineWeighted(power=2, reference="previous")

    def trained(resume: Path | None = None, used: Aggregator = rule) -> dict[str, Any]:
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        method = build(cls, network(0.2, True), aggregator=used, batch_size=4, merge_optimizer=sgd(0.7, 0.9))
        return whole(fit(method, rows(SIZES), 4, [keep], resume, enable_checkpointing=True))

    wanted = trained()
    for done in (1, 2):
        assert differing(trained(tmp_path / f"epoch={done}.ckpt"), wanted) == []
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    del saved["lightning_sfl"]["memory"]["aggregator"]  # as a run with another rule would have left it
    torch.save(saved, tmp_path / "without.ckpt")
    assert furthest(trained(tmp_path / "without.ckpt"), wanted) > 1e-6
    assert differing(trained(), wanted) == []  # the same rule in another run begins anew


def test_gradients_have_no_previous_update() -> None:
    words = "aggregator='CosineWeighted' is not allowed: only without reference=previous in FedSGD, as clients send"
    with pytest.raises(ConfigError, match=words) as refusal:
        build(FedSGD, aggregator=CosineWeighted(reference="previous"))
    assert "\n" not in str(refusal.value)


# --- who lies ---------------------------------------------------------------------------------------------------------


def with_a_liar(cls: type[SplitMethod], rule: Aggregator | None, liars: tuple[int, ...]) -> SplitMethod:
    """Some clients hand in their start state minus 10 times what they have learned."""

    class Lied(cls):  # type: ignore[misc, valid-type]
        name = cls.name

        def merge(self, plan: Plan) -> None:
            starts = [weights(half) for half in self.merged_halves()]
            for slot, client in enumerate(plan.participants):
                for half, start in zip(self.halves_of(slot), starts, strict=True) if client in liars else ():
                    for name, p in half.named_parameters():
                        p.data.copy_(start[name] - 10 * (p.data - start[name]))
            super().merge(plan)

    options = {"batch_size": 4, "local_epochs": 2, "client_optimizer": sgd(0.3)}
    data = rows((12, 12, 12, 12, 12, 12, 12))
    return fit(build(Lied, aggregator=rule, **options), data, 6, limit_val_batches=1)


@pytest.mark.parametrize("cls", [SFL, FedAvg])
def test_two_clients_of_seven_that_lie_are_withstood(cls: type[SplitMethod]) -> None:
    """Where nobody lies the network gets nearly all rows right; the average does not survive two liars."""

    def accuracy(rule: Aggregator | None, *liars: int) -> float:
        return float(with_a_liar(cls, rule, liars).trainer.callback_metrics["val/acc"])

    honest = accuracy(None)
    assert honest > 0.9
    assert accuracy(None, 1, 4) < 0.7
    for rule in (Krum(2), Krum(2, 3), TrimmedMean(2), Median()):
        assert accuracy(rule, 1, 4) > 0.75


# --- what is promised of every run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "rule"), [(SFL, CosineWeighted()), (GAS, Krum()), (FedSGD, TrimmedMean()), (MultiSFL, NormClipping())]
)
def test_it_repeats_resumes_and_is_not_changed_by_watching(
    cls: type[SplitMethod], rule: Aggregator, tmp_path: Path
) -> None:
    def trained(watcher: Recorder, resume: Path | None = None) -> dict[str, Any]:
        options = {"participants": 5, "batch_size": 4, "client_optimizer": sgd(0.1, 0.9), "aggregator": rule}
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        method = build(cls, network(0.2, True), **options)
        return whole(fit(method, rows(SIZES), 3, [keep, watcher], resume, enable_checkpointing=True))

    wanted = trained(Recorder())
    assert differing(trained(Recorder(), tmp_path / "epoch=0.ckpt"), wanted) == []
    method = build(
        cls, network(0.2, True), aggregator=rule, participants=5, batch_size=4, client_optimizer=sgd(0.1, 0.9)
    )
    assert differing(whole(fit(method, rows(SIZES), 3)), wanted) == []


# --- where there is nothing to aggregate ------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [SplitLearning, Centralized, HoloGrad])
def test_what_is_not_merged_has_no_aggregator(cls: type[SplitMethod]) -> None:
    with pytest.raises(ConfigError, match=f"aggregator='Median' is not allowed: none in {cls.__name__}, as") as refusal:
        build(cls, aggregator=Median())
    assert "\n" not in str(refusal.value)
    build(cls, aggregator=WeightedAverage())


@pytest.mark.parametrize(
    ("cls", "options", "data"),
    [
        (SFL, {"participants": 4}, rows(SIZES)), (SFL, {}, rows((5, 4, 9))), (GAS, {"model_buffer": 2}, rows(SIZES)),
        (MultiSFL, {"branches": 4}, rows(SIZES)), (FedSGD, {"participants": 1}, rows(SIZES)),
    ],
)  # fmt: skip
def test_too_few_clients_for_a_rule_are_refused_before_training(
    cls: type[SplitMethod], options: dict[str, Any], data: Rows
) -> None:
    recorder = Recorder()
    with pytest.raises(
        ConfigError, match=r"aggregator='Krum' is not allowed: .* needs 5 clients a round, not"
    ) as refusal:
        fit(build(cls, aggregator=Krum(), **options), data, callbacks=[recorder])
    assert "\n" not in str(refusal.value)
    assert recorder.events == []
    fit(build(cls, aggregator=CosineWeighted(), **options), data)


def test_a_round_with_fewer_clients_than_planned_is_refused_too() -> None:
    method = fit(build(SFL, aggregator=Krum()), rows(SIZES))
    states = [method.handed_in_by(slot) for slot in range(4)]
    with pytest.raises(ConfigError, match="needs 5 clients a round, not 4"):
        method.put_together(states, [1.0] * 4, range(4))
