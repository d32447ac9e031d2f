"""What each method sends back over the cut, in numbers known beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from lightning_sfl.core.events import CutGradient
from lightning_sfl.methods import SFL, SFLV1, SFLV2, MiniBatchSFL, SplitLearning, SplitMethod
from tests.methods.toy import labelled, toy
from tests.tiny import NUM_CLASSES, Recorder, build, fit, rows, sgd

OWN_BATCH = [SplitLearning, SFL, SFLV1, SFLV2]


def sent(cls: type[SplitMethod], *labels: list[int], server_lr: float, **options: Any) -> list[CutGradient]:
    recorder = Recorder()
    options |= {"batch_size": None, "client_optimizer": sgd(0.0), "server_optimizer": sgd(server_lr)}
    fit(build(cls, toy(), "lower", **options), labelled(*labels), callbacks=[recorder])
    return recorder.of(CutGradient)


def own_rows(event: CutGradient) -> torch.Tensor:
    """softmax - label of each row while all logits are zero."""
    return torch.tensor([[-0.5, 0.5] if label == 0 else [0.5, -0.5] for label in event.labels])


@pytest.mark.parametrize("cls", [*OWN_BATCH, MiniBatchSFL])
def test_rows_are_divided_by_the_clients_own_batch(cls: type[SplitMethod]) -> None:
    one, three = sent(cls, [0], [0, 1, 0], server_lr=0.0)
    assert one.sent[0].tolist() == [[-0.5, 0.5]]
    torch.testing.assert_close(three.sent[0], own_rows(three) / 3)


def test_slices_of_the_joint_mean_are_divided_by_all_rows() -> None:
    for scale, factors in (("concat_mean", (1, 1)), ("local_mean", (4, 4 / 3))):
        events = sent(MiniBatchSFL, [0], [0, 1, 0], server_lr=0.0, client_gradient_scale=scale)
        for event, factor in zip(events, factors, strict=True):
            assert torch.equal(event.raw[0], own_rows(event) / 4)
            torch.testing.assert_close(event.sent[0], own_rows(event) * factor / 4)


@pytest.mark.parametrize("cls", [SplitLearning, SFL, SFLV2])
def test_a_client_meets_the_server_that_those_before_it_trained(cls: type[SplitMethod]) -> None:
    """After one row of label 0 at rate 1 the bias is (.5, -.5): softmax gives 1 / (1 + e) to label 1, over 3 rows."""
    first, second = sent(cls, [0], [0, 0, 0], server_lr=1.0)
    assert first.sent[0].tolist() == [[-0.5, 0.5]]
    torch.testing.assert_close(second.sent[0], torch.tensor([[-0.0896471, 0.0896471]] * 3), rtol=0, atol=1e-7)


def test_neither_private_copies_nor_joint_steps_do() -> None:
    for event, num_rows in zip(sent(SFLV1, [0], [0, 0, 0], server_lr=1.0), (1, 3), strict=True):
        torch.testing.assert_close(event.sent[0], torch.tensor([[-0.5, 0.5]] * num_rows) / num_rows)
    for event, num_rows in zip(sent(MiniBatchSFL, [0], [0, 0, 0], server_lr=1.0), (1, 3), strict=True):
        assert event.raw[0].tolist() == [[-0.125, 0.125]] * num_rows


# A step in which three clients send (4, 4, 1) rows: what the summed loss was divided by, and ||sent|| / ||raw||.
TABLE: list[tuple[type[SplitMethod], dict[str, Any], list[float], list[float]]] = [
    *((cls, {}, [4, 4, 1], [1, 1, 1]) for cls in OWN_BATCH),
    (MiniBatchSFL, {}, [9, 9, 9], [9 / 4, 9 / 4, 9]),
    (MiniBatchSFL, {"client_gradient_scale": "concat_mean"}, [9, 9, 9], [1, 1, 1]),
]


@pytest.mark.parametrize(("cls", "options", "denominators", "gains"), TABLE)
@pytest.mark.parametrize("cut_layer", ["fc1", "relu2"])
def test_effective_denominator(
    cls: type[SplitMethod], options: dict[str, Any], denominators: list[float], gains: list[float], cut_layer: str
) -> None:
    recorder = Recorder()
    fit(build(cls, None, cut_layer, batch_size=4, local_steps=1, **options), rows((5, 4, 1)), callbacks=[recorder])
    for event, denominator, gain in zip(recorder.of(CutGradient), denominators, gains, strict=True):
        residual = event.logits.softmax(-1) - one_hot(event.labels, NUM_CLASSES)
        measured = residual.norm(dim=1).sum() / event.logits_gradient.norm(dim=1).sum()
        assert measured.item() == pytest.approx(denominator, rel=1e-5)
        assert (event.sent[0].norm() / event.raw[0].norm()).item() == pytest.approx(gain, rel=1e-5)
        assert event.rows == len(event.labels)
        own_mean = event.rows * gain / denominator
        assert own_mean == pytest.approx(event.rows / 9 if options else 1)
