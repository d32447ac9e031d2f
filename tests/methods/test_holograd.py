"""HoloGrad as a method: what it becomes in its limits, replicas bit for bit (invariant 12), bytes (16)."""

from __future__ import annotations

import re
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_sfl.callbacks import ProofCheck
from lightning_sfl.core.byzantine import Byzantine
from lightning_sfl.core.errors import ConfigError, PlacementError
from lightning_sfl.core.events import ClientStep, RoundEnd, ScalarsSent, ServerBackward, ServerStep
from lightning_sfl.core.holograd.basis import Basis, BasisChoice
from lightning_sfl.core.holograd.commitment import base_of, basis_seeds
from lightning_sfl.core.holograd.projection import flat
from lightning_sfl.core.holograd.replay import Replica
from lightning_sfl.core.holograd.robust import Robust
from lightning_sfl.core.holograd.synthesis import Message
from lightning_sfl.core.link import Link
from lightning_sfl.core.selection import FixedSchedule
from lightning_sfl.core.stragglers import Stragglers
from lightning_sfl.methods import FedSGD, HoloGrad, SplitMethod
from tests.tiny import Recorder, Rows, build, differing, fit, furthest, network, rows, sgd, whole

SIZE = 151  # parameters of the small network
SIZES = (5, 4, 9, 2)


def holograd(**options: Any) -> HoloGrad:
    """Random directions, unlike the exact settings that comparisons with other methods take."""
    net = options.pop("net", None)
    return HoloGrad(net or network(), "relu1", **{"num_scalars": 40, "scale": "mmse", **options})


class Messages(Recorder):
    """Keeps each round's message, gradient as stepped with, and scalars as they arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.estimates: list[Tensor] = []
        self.sent: list[list[ScalarsSent]] = []
        self.own: list[dict[str, float]] = []

    def on_round_start(self, module: SplitMethod, event: Any) -> None:
        self.sent.append([])

    def on_scalars_sent(self, module: SplitMethod, event: ScalarsSent) -> None:
        self.sent[-1].append(event)

    def on_server_backward(self, module: Any, event: ServerBackward) -> None:
        super().on_server_backward(module, event)
        parameters = list(module.client_half.parameters()) + list(module.server_half.parameters())
        self.estimates.append(flat([p.grad for p in parameters], parameters))

    def on_round_end(self, module: Any, event: RoundEnd) -> None:
        super().on_round_end(module, event)
        self.messages.append(module.message)
        self.own.append(event.scalars)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("projection", "topology"), [("grad", "shared"), ("grad", "partitioned"), ("jvp", "shared")])
def test_with_as_many_orthonormal_directions_as_parameters_it_is_fedsgd(projection: str, topology: str) -> None:
    options = {"server_optimizer": sgd(0.1, 0.9), "persist_server_optimizer": True, "participants": 3}
    exact = {"num_scalars": SIZE, "directions": "orthogonal", "projection": projection, "topology": topology}
    found = []
    for dtype in (torch.float64, torch.float32):
        data = rows(SIZES, dtype=dtype)
        one = fit(holograd(net=network(dtype=dtype), **exact, **options), data, 2)
        other = fit(build(FedSGD, network(dtype=dtype), **options), data, 2)
        found.append(furthest(whole(one), whole(other)))
    assert found[0] < 1e-12
    assert found[1] < 1e-5


def test_the_estimate_is_that_of_the_weighted_mean_gradient() -> None:
    """Shared directions and a plain mean: the same scalars as those of FedSGD's gradient."""
    gradients = []

    class Mean(Recorder):
        def on_server_backward(self, module: Any, event: ServerBackward) -> None:
            halves = (module.client_half, module.server_half)
            gradients.append(torch.cat([p.grad.flatten() for half in halves for p in half.parameters()]))

    fit(build(FedSGD), rows(SIZES), 1, [Mean()])
    seen = Messages()
    method = holograd(scale="unbiased")
    fit(method, rows(SIZES), 1, [seen])
    directions = seen.sent[0][0].directions
    direct = SIZE / 40 * directions.combine(directions.project(gradients[0][None])[0])
    assert (seen.estimates[0] - direct).norm() / direct.norm() < 1e-6


@pytest.mark.parametrize("rule", ["trimmed_mean", "median"])
def test_robust_rules_leave_identical_clients_alone(rule: Any) -> None:
    data = rows((6,), dtype=torch.float64)
    x, y = data.population.x.repeat(4, 1), data.population.y.repeat(4)
    copies = Rows(x, y, [range(6 * i, 6 * i + 6) for i in range(4)])
    states = [
        whole(fit(holograd(net=network(dtype=torch.float64), robust=Robust(each, 0.25)), copies))
        for each in ("mean", rule)
    ]
    assert furthest(*states) < 1e-12


def test_forward_mode_is_the_gradient_with_dropout_and_batch_norm_too() -> None:
    """One round: the next one's directions are drawn from a digest of the weights, of which every bit counts."""
    ways = ("grad", "jvp", "fd")
    exact, forward, coarse = (
        whole(fit(holograd(net=network(0.3, norm=True), projection=way), rows(SIZES))) for way in ways
    )
    assert furthest(exact, forward) < 1e-6
    assert exact["bn1.num_batches_tracked"] == forward["bn1.num_batches_tracked"] == 1
    assert 1e-6 < furthest(exact, coarse) < 0.1


def test_a_round_is_one_server_step_and_no_client_step() -> None:
    seen = Messages()
    fit(holograd(), rows(SIZES), 2, [seen])
    assert seen.count(ClientStep) == 0
    assert len(seen.of(ServerBackward)) == len(seen.messages) == 2
    assert [len(sent) for sent in seen.sent] == [4, 4]
    assert seen.count(ServerStep) == 2


def test_frozen_parameters_stay_out_of_the_vector() -> None:
    net = network()
    net.fc1.weight.requires_grad_(False)
    seen = Messages()
    after = whole(fit(holograd(net=net), rows(SIZES), 1, [seen]))
    assert differing(after, dict(network().state_dict())) == sorted({*after} - {"fc1.weight"})
    assert seen.sent[0][0].directions.size == SIZE - 48


# --- replay -----------------------------------------------------------------------------------------------------------

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


# --- bytes ------------------------------------------------------------------------------------------------------------

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


# --- liars and stragglers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["noise", "one_sided", "sign_flip", "scale", "inner_product"])
def test_liars_send_what_they_are_told_to(attack: Any) -> None:
    truth, lies = Messages(), Messages()
    byzantine = Byzantine(0.5, attack, 3.0)
    fit(holograd(), rows(SIZES), 1, [truth])
    fit(holograd(byzantine=byzantine), rows(SIZES), 1, [lies])
    liars = byzantine.liars(0, 4)
    assert len(liars) == 2
    true = {sent.batch.client_id: sent.scalars for sent in truth.sent[0]}
    mean = torch.stack([scalars for client, scalars in true.items() if client not in liars]).mean(0)
    for sent in lies.sent[0]:
        own = true[sent.batch.client_id]
        if sent.batch.client_id not in liars:
            assert torch.equal(sent.scalars, own)
            continue
        if attack == "noise":
            assert 1 < sent.scalars.abs().max() <= 3
            assert not torch.equal(sent.scalars, own)
        else:
            wanted = {
                "one_sided": torch.full_like(own, 3.0), "sign_flip": -3 * own, "scale": 3 * own,
                "inner_product": -3 * mean,
            }[attack]  # fmt: skip
            torch.testing.assert_close(sent.scalars, wanted)


def test_trimming_defends_a_run_against_one_sided_liars() -> None:
    liars = Byzantine(0.25, "one_sided", 1e6)
    honest = whole(fit(holograd(), rows((6, 6, 6, 6)), 3))
    defended = whole(fit(holograd(byzantine=liars, robust=Robust("trimmed_mean", 0.25)), rows((6, 6, 6, 6)), 3))
    lost = whole(fit(holograd(byzantine=liars), rows((6, 6, 6, 6)), 3))
    assert furthest(honest, defended) < 0.2
    assert furthest(honest, lost) > 1e3


def test_late_uploads_do_not_count() -> None:
    draws = Stragglers("first", first=2)
    arrived, waited = draws.arrived(0, 0, (0, 1, 2, 3))
    seen, only = Messages(), Messages()
    fit(holograd(stragglers=draws), rows(SIZES), 1, [seen])
    assert seen.of(ServerBackward)[0].client_ids == tuple(arrived)
    assert seen.own[0]["comm/waited_s"] == waited
    scalars = torch.stack([seen.sent[0][i].scalars for i in arrived])
    shares = torch.tensor([float(SIZES[i]) for i in arrived])
    coefficients = seen.messages[0].coefficients[0]
    expected = SIZE / (40 + SIZE - 1) * (shares / shares.sum()) @ scalars
    torch.testing.assert_close(coefficients, expected)
    fit(holograd(), rows(SIZES), 1, [only])
    assert only.own[0]["comm/waited_s"] > waited


@pytest.mark.parametrize(("collect", "count"), [("all", 50), ("first", 7), ("window", None)])
def test_whom_the_server_waits_for(collect: Any, count: int | None) -> None:
    everybody = range(50)
    arrived, waited = Stragglers(collect, first=7, window_s=0.12).arrived(3, 5, everybody)
    assert arrived == sorted(set(arrived))
    assert count is None or len(arrived) == count
    if collect == "window":
        assert waited == 0.12
        assert 20 < len(arrived) < 45
    lonely, late = Stragglers("window", window_s=0.0, mean_s=1.0).arrived(3, 5, everybody)
    assert len(lonely) == 1
    assert late > 0.5


# --- what cannot work -------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no scalars": ({"num_scalars": 0}, "num_scalars=0"),
    "kind": ({"directions": "x"}, "directions='x'"),
    "scale": ({"scale": "x"}, "scale='x'"),
    "topology": ({"topology": "x"}, "topology='x'"),
    "projection": ({"projection": "x"}, "projection='x'"),
    "robust and partitioned": ({"topology": "partitioned", "robust": Robust("median")}, "robust.rule='median'"),
    "momentum alone": ({"basis": BasisChoice("momentum"), "num_scalars": 16}, "num_scalars=16"),
    "subspace alone": ({"basis": BasisChoice("subspace", rank=32), "num_scalars": 40}, "num_scalars=40"),
    "more orthogonal directions than parameters": ({"directions": "orthogonal", "num_scalars": 152}, "num_scalars=152"),
    "a basis as large as the network": (
        {"basis": BasisChoice("subspace", rank=151), "num_scalars": 200}, "basis.rank=151",
    ),
    "liars": ({"byzantine": Byzantine(0.2, "inner_product"), "topology": "partitioned"}, "byzantine.attack="),
    "synchronisation": ({"synchronisation": "x"}, "synchronisation='x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_refused_in_one_line(case: str) -> None:
    options, named = WRONG[case]
    with pytest.raises(ConfigError, match=re.escape(named) + r".* is not allowed: ") as refusal:
        fit(holograd(**options), rows(SIZES))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Byzantine(share=1.0), lambda: Byzantine(attack="x"), lambda: Byzantine(size=float("inf")),  # type: ignore[arg-type]
        lambda: Stragglers("x"), lambda: Stragglers(first=0), lambda: Stragglers(window_s=-1.0),  # type: ignore[arg-type]
        lambda: Stragglers(mean_s=float("nan")),
    ],
)  # fmt: skip
def test_ranges_of_the_wrappers(make: Any) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        make()


def test_batch_norm_networks_move_their_buffers() -> None:
    method = fit(holograd(net=network(norm=True)), rows(SIZES), 2)
    assert isinstance(method.client_half, nn.Module)
    assert method.client_half.state_dict()["bn1.num_batches_tracked"] == 2
