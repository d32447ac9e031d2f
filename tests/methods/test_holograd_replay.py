"""HoloGrad's replicas bit for bit (invariant 12), and its bytes (16)."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_sfl.callbacks import ProofCheck
from lightning_sfl.core.byzantine import Byzantine
from lightning_sfl.core.errors import PlacementError
from lightning_sfl.core.events import RoundEnd
from lightning_sfl.core.holograd.basis import Basis, BasisChoice
from lightning_sfl.core.holograd.commitment import base_of, basis_seeds
from lightning_sfl.core.holograd.projection import flat
from lightning_sfl.core.holograd.replay import Replica
from lightning_sfl.core.holograd.robust import Robust
from lightning_sfl.core.holograd.synthesis import Message
from lightning_sfl.core.link import Link
from lightning_sfl.core.selection import FixedSchedule
from lightning_sfl.core.stragglers import Stragglers
from tests.methods.replicas import SIZE, SIZES, Messages, holograd
from tests.tiny import differing, fit, furthest, network, rows, sgd, whole

REPLAYED: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum of the optimizer, clipped": {
        "server_optimizer": sgd(0.1, 0.9), "persist_server_optimizer": True, "server_clip": 0.05,
    },
    "momentum basis": {"basis": BasisChoice("momentum")},
    "subspace, trimmed, liars": {
        "basis": BasisChoice("subspace", rank=8), "robust": Robust("trimmed_mean", 0.25),
        "byzantine": Byzantine(0.25, "noise", 10),
    },
    "partitioned, late": {"topology": "partitioned", "stragglers": Stragglers("first", first=2)},
    "orthogonal, median, forward mode": {
        "directions": "orthogonal", "robust": Robust("median"), "projection": "jvp", "scale": "norm",
    },
}  # fmt: skip


def follow(messages: list[Message], options: dict[str, Any]) -> tuple[nn.Module, Basis]:
    """A replica's network and basis after these messages."""
    net = network()
    named = list(net.named_parameters())
    like = flat([p for _, p in named], [p for _, p in named])
    choice = options.get("basis", BasisChoice())
    base = base_of(0, "holograd")
    basis = Basis(choice, basis_seeds(base, choice.rank), like)
    optimizer = options.get("server_optimizer", sgd())(net.parameters())
    replica = Replica(base, named, basis, options.get("directions", "random"), optimizer, options.get("server_clip"))
    for message in messages:
        replica.apply(message)
    return net, basis


@pytest.mark.parametrize("case", REPLAYED)
def test_a_replica_follows_from_the_messages_alone(case: str) -> None:
    seen = Messages()
    method = fit(holograd(**REPLAYED[case]), rows(SIZES), 5, [seen])
    net, basis = follow(seen.messages, REPLAYED[case])
    assert differing(dict(net.state_dict()), whole(method)) == []
    assert torch.equal(basis.rows, method.coordinator.basis.rows)  # type: ignore[union-attr]


@pytest.mark.parametrize("projection", ["grad", "jvp"])
def test_in_mixed_precision_a_replica_follows_all_the_same(projection: Any) -> None:
    """Only the clients' forward and backward passes are bfloat16; what a replica computes again is not."""
    options = {"basis": BasisChoice("subspace", rank=8), "robust": Robust("mean")}
    seen, audited = Messages(), ProofCheck(probability=1.0, tolerance=0.2)
    method = holograd(projection=projection, **options)
    fit(method, rows(SIZES), 3, [seen, audited], precision="bf16-mixed")
    net, basis = follow(seen.messages, options)
    assert differing(dict(net.state_dict()), whole(method)) == []
    assert torch.equal(basis.rows, method.coordinator.basis.rows)  # type: ignore[union-attr]
    coarse = max(check.largest for check in audited.found.values())
    assert coarse < 1e-5 if projection == "grad" else 1e-4 < coarse < 0.2
    exact = whole(fit(holograd(projection=projection, **options), rows(SIZES), 1))
    assert 1e-6 < furthest(exact, follow(seen.messages[:1], options)[0].state_dict()) < 0.1


def test_a_replica_with_another_bit_is_lost() -> None:
    """Directions are committed to the parameters: who is out of step knows it at once."""
    seen = Messages()
    method = fit(holograd(), rows(SIZES), 1, [seen])
    net = network()
    with torch.no_grad():
        net.fc1.bias[0] += 1e-7
    named = list(net.named_parameters())
    basis = Basis(BasisChoice(), [], torch.zeros(SIZE))
    Replica(base_of(0, "holograd"), named, basis, "random", sgd()(net.parameters())).apply(seen.messages[0])
    assert furthest(dict(net.state_dict()), whole(method)) > 1e-3


class Apart(Link):
    """Says that rank 0 has drawn something else."""

    alone = False

    def from_server(self, values: Any) -> list[float]:
        return [value + 1 for value in values]


def test_processes_that_are_out_of_step_say_so_at_once() -> None:
    method = holograd()
    method.link = Apart()
    with pytest.raises(PlacementError, match=r"^rank 0, round 0: some bit of the weights is not that of rank 0"):
        fit(method, rows(SIZES))


class Memories(L.Callback):
    def __init__(self) -> None:
        self.seeds: list[bytes] = []

    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        self.seeds.append(module.coordinator.sets[0].seeds[0])


@pytest.mark.parametrize("kind", ["momentum", "subspace"])
def test_resume_takes_up_seeds_basis_and_ledger(kind: Any, tmp_path: Any) -> None:
    options = {"basis": BasisChoice(kind, rank=8), "participants": 2}
    straight, resumed = Memories(), Memories()
    done = fit(holograd(**options), rows(SIZES), 4, [straight])
    half = holograd(**options)
    fit(half, rows(SIZES), 2)
    half.trainer.save_checkpoint(tmp_path / "two.ckpt")
    again = fit(holograd(**options), rows(SIZES), 4, [resumed], resume=tmp_path / "two.ckpt")
    assert straight.seeds[2:] == resumed.seeds
    assert len(set(straight.seeds)) == 4
    assert torch.equal(again.coordinator.basis.rows, done.coordinator.basis.rows)
    assert torch.equal(again.coordinator.basis.memory, done.coordinator.basis.memory)
    assert again.ledger.state() == done.ledger.state()
    assert differing(whole(again), whole(done)) == []


UP, DOWN = 16 + 4 * 40, 8 + 32 + 4 * 40


def test_bytes_of_an_upload_and_a_message() -> None:
    seen = Messages()
    fit(holograd(num_scalars=64), rows(SIZES), 3, [seen])
    assert seen.messages[0].num_bytes == 296
    first, *later = seen.traffic_bytes
    assert first["scalars", "up"] == 4 * 272
    assert first["scalars", "down"] == 4 * 296
    assert first["weights", "down"] == 4 * SIZE * 4
    for round in later:
        assert {**round, ("weights", "down"): 0} == {
            ("scalars", "up"): 4 * 272, ("scalars", "down"): 4 * 296, ("weights", "down"): 0,
        }  # fmt: skip
    for own in seen.own:
        assert own["comm/payload_bytes"] == 4 * (272 + 296)
        assert own["comm/with_sync_bytes"] == 4 * (272 + 296 + 4 * SIZE)


def test_who_was_away_replays_what_it_missed(tmp_path: Any) -> None:
    path = tmp_path / "schedule.json"
    path.write_text("[[0, 1], [0], [0], [0, 1], [2]]")
    seen = Messages()
    fit(holograd(selection=FixedSchedule(str(path)), participants=2, num_scalars=16), rows((5, 4, 9)), 5, [seen])
    up, down = 16 + 64, 40 + 64
    caught_up = [t["scalars", "down"] - down * n for t, n in zip(seen.traffic_bytes, (2, 1, 1, 2, 1), strict=True)]
    assert caught_up == [0, 0, 0, 2 * down, 0]
    assert [t["weights", "down"] for t in seen.traffic_bytes] == [2 * 4 * SIZE, 0, 0, 0, 4 * SIZE]
    assert [t["scalars", "up"] for t in seen.traffic_bytes] == [2 * up, up, up, 2 * up, up]


def test_who_was_away_for_long_takes_the_state(tmp_path: Any) -> None:
    path = tmp_path / "schedule.json"
    path.write_text("[[0, 1], [0], [0], [0], [0], [0, 1]]")
    seen = Messages()
    fit(holograd(selection=FixedSchedule(str(path)), participants=2), rows((5, 4)), 6, [seen])
    assert seen.traffic_bytes[-1]["weights", "down"] == 4 * SIZE  # four messages of 200 bytes are longer
    assert seen.traffic_bytes[-1]["scalars", "down"] == 2 * DOWN


def test_state_every_round_and_what_it_consists_of() -> None:
    seen = Messages()
    basis = BasisChoice("subspace", rank=8)
    options = {"server_optimizer": sgd(0.1, 0.9), "persist_server_optimizer": True}
    fit(holograd(synchronisation="state", basis=basis, net=network(norm=True), **options), rows(SIZES), 2, [seen])
    buffers, size = 4 * (16 + 14) + 2 * 8, SIZE + 2 * 15
    state = 4 * size + buffers + 4 * 8 * size
    assert [t["weights", "down"] for t in seen.traffic_bytes] == [4 * state, 4 * (state + 4 * size)]
    assert [t["weights", "up"] for t in seen.traffic_bytes] == [4 * buffers] * 2


def test_partitioned_messages_hold_everybodys_scalars() -> None:
    seen = Messages()
    fit(holograd(topology="partitioned"), rows(SIZES), 1, [seen])
    assert seen.messages[0].num_bytes == 8 + 4 * (32 + 4 * 40)
    sets = [sent.directions for sent in seen.sent[0]]
    assert len({each.seeds[0] for each in sets}) == 4
    shared = Messages()
    fit(holograd(), rows(SIZES), 1, [shared])
    assert len({sent.directions.seeds[0] for sent in shared.sent[0]}) == 1
