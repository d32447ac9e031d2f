"""IFCA: there are several networks; a client trains the one that fits its rows best, and each is averaged apart.

A. Ghosh, J. Chung, D. Yin, K. Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
Algorithm 1 with model averaging.

    each client k:  j_k <- argmin_j f_k(w_j);  w_k <- w_j, j = j_k;  E epochs of mini-batch SGD on its own rows
    each j that was chosen:  w_j <- sum of n_k w_k / sum of n_k, both over k with j_k = j
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lightning_sfl.core.errors import require
from lightning_sfl.core.gradients import ROWS_AT_ONCE, untouched
from lightning_sfl.core.randomness import stream
from lightning_sfl.core.rounds import Batch, Plan
from lightning_sfl.core.state import State, load_state, state_of
from lightning_sfl.methods.whole import WholeMethod


class IFCA(WholeMethod):
    """FedAvg within clusters that clients find by themselves.

    Rows that belong to no client are judged by the network that most participants of the last round chose. Choosing
    costs a pass over all rows of a client for each network, which simulated times leave out.

    Args:
        backbone: the network of the first cluster; the others start from the same numbers, shuffled in each parameter.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        clusters: networks there are; with 1 this is FedAvg.
        kwargs: options of the clients' side of `SplitMethod`.
    """

    name = "ifca"
    one_network = False
    whole_loss = "each cluster is averaged apart"
    why_only_averaged = "a cluster may be a single client"
    why_not_by_rows = "clients choose by losses that nothing hides"
    one_device = "clients try each network before they choose"

    def __init__(self, backbone: nn.Module, cut_layer: str, *, clusters: int = 2, **kwargs: Any) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        require(clusters >= 1, "clusters", clusters, "an integer >= 1")
        alike = clusters > 1 and self.starts_merged
        require(not alike, "dynamics.start", "merged", "method in IFCA: a client starts from the network it chooses")
        self.clusters = clusters
        self.networks: list[State] = []
        self.chosen: list[int] = []
        self.told: dict[str, float] = {}

    def on_fit_start(self) -> None:
        self.networks = []
        super().on_fit_start()
        self.networks = self.networks or [self.drawn(cluster) for cluster in range(self.clusters)]

    def drawn(self, cluster: int) -> State:
        """What a cluster starts from: for the first the network itself."""
        halves, draw = self.merged_halves(), stream(self.seed, "ifca", client=cluster)
        state = {name: tensor.clone() for name, tensor in state_of(halves).items()}
        for name, parameter in halves.named_parameters() if cluster else ():
            order = torch.from_numpy(draw.permutation(parameter.numel())).to(parameter.device)
            state[name] = parameter.detach().flatten()[order].view_as(parameter)
        return state

    def follow(self, plan: Plan) -> Plan:
        why = "1 here: of several networks a checkpoint's halves are but one"
        require(self.clusters == 1, "clusters", self.clusters, why)
        return plan

    # --- choosing ---------------------------------------------------------------------------------------------------

    def steps(self, plan: Plan) -> Iterator[list[Batch]]:
        found = [float(self.closest(client, self.halves_of(0))) for client in plan.participants]  # slot 0 is still free
        self.chosen = [int(cluster) for cluster in self.link.from_server(found)]
        return super().steps(plan)

    def closest(self, client: int, room: Sequence[nn.Module]) -> int:
        """The cluster whose network has the lowest loss on a client's rows, tried in these halves; ties: the first."""
        if self.clusters == 1:
            return 0
        losses = []
        for network in self.networks:
            load_state(nn.ModuleList(room), network)
            losses.append(self.mean_loss(client, room))
        return losses.index(min(losses))

    @torch.no_grad()
    def mean_loss(self, client: int, halves: Sequence[nn.Module]) -> float:
        """Over all rows that a client trains on, dropout off."""
        rows, total = self.population.rows[client], torch.zeros((), dtype=torch.float64, device=self.device)
        with untouched(halves, "running", self.device):
            for start in range(0, len(rows), ROWS_AT_ONCE):
                x, labels = self.population.take(rows[start : start + ROWS_AT_ONCE])
                total += self.loss(halves[1](halves[0](x)), labels).double() * len(labels)
        return float(total) / max(1, len(rows))

    def serving(self, client: int) -> tuple[nn.Module, nn.Module]:
        if self.clusters == 1 or not len(self.population.rows[client]):
            return super().serving(client)
        room = (copy.deepcopy(self.client_half), copy.deepcopy(self.server_half))
        load_state(nn.ModuleList(room), self.networks[self.closest(client, room)])
        return room

    def receive_weights(self, slot: int) -> None:
        self.boundary.count("weights", "down", self.clusters * self.owned_bytes)

    # --- a network for each cluster ---------------------------------------------------------------------------------

    def load_slot(self, slot: int) -> None:
        load_state(nn.ModuleList(self.halves_of(slot)), self.networks[self.chosen[slot]])

    def merge(self, plan: Plan) -> None:
        weights, halves = self.weights(plan), self.merged_halves()
        sizes = [0] * self.clusters
        for cluster, network in enumerate(self.networks):
            members = [slot for slot in plan.finishers if self.chosen[slot] == cluster]
            sizes[cluster] = len(members)
            if members:
                load_state(halves, network)  # what these clients started from
                states, clients = map(self.handed_in_by, members), [plan.participants[slot] for slot in members]
                self.put_together([*states], [weights[slot] for slot in members], clients)
                network.update({name: tensor.clone() for name, tensor in state_of(halves).items()})
        load_state(halves, self.networks[sizes.index(max(sizes))])
        self.told = {f"cluster/clients_{cluster}": float(size) for cluster, size in enumerate(sizes)}

    def scalars(self) -> dict[str, float]:
        return self.told

    # --- what outlives a round --------------------------------------------------------------------------------------

    def data_identity(self) -> dict[str, Any]:
        return super().data_identity() | {"clusters": self.clusters}

    def memory(self) -> dict[str, Any]:
        return {**super().memory(), "networks": self.networks}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        self.networks = [{name: t.to(self.device) for name, t in state.items()} for state in memory["networks"]]

    def departures(self) -> dict[str, str]:
        own = "a client trains the network that fits it best, and gets all of them to see which"
        return {} if self.clusters == 1 else dict.fromkeys(("one_step", "one_client", "bytes"), own)
