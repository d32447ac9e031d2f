"""What a step subtracts, and what crosses the cut, against autograd on the uncut network and against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_sfl.core.events import CutGradient
from lightning_sfl.methods import MiniBatchSFL, PerFedAvg, SplitMethod
from tests.every_method import METHODS
from tests.tiny import CUTS, Recorder, build, fit, network, rows, sgd, whole


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls is not PerFedAvg])  # whose step is on half of the rows
@pytest.mark.parametrize("cut_layer", CUTS)
def test_one_step_is_the_gradient_of_the_uncut_network(cls: type[SplitMethod], cut_layer: str) -> None:
    """One client, one plain step of rate 1: what was subtracted is what autograd finds end to end."""
    data, net = rows((8,), dtype=torch.float64), network(dtype=torch.float64)
    x, y = data.population.x, data.population.y
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    loss = cross_entropy(net(x), y)
    wanted = dict(zip(before, torch.autograd.grad(loss, list(net.parameters())), strict=True))
    options = {"batch_size": None, "client_optimizer": sgd(1.0), "server_optimizer": sgd(1.0)}
    after = whole(fit(build(cls, net, cut_layer, **options), data))
    for name, gradient in wanted.items():
        torch.testing.assert_close(before[name] - after[name], gradient, rtol=0, atol=1e-12)


def test_slice_of_the_joint_gradient_times_its_share_is_the_own_mean() -> None:
    sent: dict[str, list[Tensor]] = {}
    for scale in ("concat_mean", "local_mean"):
        recorder = Recorder()
        method = build(MiniBatchSFL, network(), batch_size=4, local_steps=1, client_gradient_scale=scale)
        fit(method, rows((5, 4, 3)), callbacks=[recorder])
        sent[scale] = [event.sent[0].clone() for event in recorder.of(CutGradient)]
    for joint, own, num_rows in zip(sent["concat_mean"], sent["local_mean"], (4, 4, 3), strict=True):
        assert torch.equal(joint * (11 / num_rows), own)
