"""What clustered methods have in common: several networks, each averaged over the clients that have trained it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from lightning_sfl.core.errors import require
from lightning_sfl.core.rounds import Batch, Plan
from lightning_sfl.core.state import State, copied, load_state, state_of
from lightning_sfl.methods.whole import WholeMethod


class ClusteredMethod(WholeMethod):
    """FedAvg within clusters of clients. A method says where a client belongs, and which networks there are at first.

    networks: the network of each cluster, by the names of `merged_halves`. chosen: the cluster of the client in each
    slot of the round. The merged halves are the network that most participants of the last round have trained.

    Args:
        backbone: the whole network.
        cut_layer: where diagnostics divide it; only dropout, which has a stream for each side, feels it.
        kwargs: options of the clients' side of `SplitMethod`.
    """

    one_network = False
    whole_loss = "each cluster is averaged apart"
    why_only_averaged = "a cluster may be a single client"

    def __init__(self, backbone: nn.Module, cut_layer: str, **kwargs: Any) -> None:
        super().__init__(backbone, cut_layer, **kwargs)
        self.networks: list[State] = []
        self.chosen: list[int] = []
        self.sizes: dict[int, int] = {}

    def refuse_alike(self, key: str, value: Any, single: Any) -> None:
        """Note which option makes this FedAvg, at which value; where it has another, clients do not start alike."""
        self.single = (key, value, single)
        alike = value != single and self.starts_merged
        why = f"method in {type(self).__name__}: a client starts from the network of its cluster"
        require(not alike, "dynamics.start", "merged", why)

    def first_networks(self) -> list[State]:
        """What the clusters of a new run start from, as copies."""
        return [copied(state_of(self.merged_halves()))]

    def cluster_of(self, client: int, room: Sequence[nn.Module]) -> int:
        """The cluster of a client; room: two halves to try networks in."""
        raise NotImplementedError

    @property
    def standing(self) -> Sequence[int]:
        """The clusters that are averaged."""
        return range(len(self.networks))

    def on_fit_start(self) -> None:
        self.networks = []
        super().on_fit_start()
        self.networks = self.networks or self.first_networks()

    def follow(self, plan: Plan) -> Plan:
        key, value, single = self.single
        only = "null" if single is None else single
        require(value == single, key, value, f"{only} here: of several networks a checkpoint's halves are but one")
        return plan

    # --- a round ----------------------------------------------------------------------------------------------------

    def steps(self, plan: Plan) -> Iterator[list[Batch]]:
        room = self.halves_of(0)  # nobody is in this slot yet
        found = [float(self.cluster_of(client, room)) for client in plan.participants]
        self.chosen = [int(cluster) for cluster in self.link.from_server(found)]
        return super().steps(plan)

    def load_slot(self, slot: int) -> None:
        load_state(nn.ModuleList(self.halves_of(slot)), self.networks[self.chosen[slot]])

    def members(self, plan: Plan, cluster: int) -> list[int]:
        """Slots of those that hand in for this cluster."""
        return [slot for slot in plan.finishers if self.chosen[slot] == cluster]

    def merge(self, plan: Plan) -> None:
        weights, halves = self.weights(plan), self.merged_halves()
        self.sizes = {}
        for cluster in self.standing:
            network, members = self.networks[cluster], self.members(plan, cluster)
            self.sizes[cluster] = len(members)
            if members:
                load_state(halves, network)  # what these clients started from
                states, clients = map(self.handed_in_by, members), [plan.participants[slot] for slot in members]
                self.put_together([*states], [weights[slot] for slot in members], clients)
                network.update(copied(state_of(halves)))
        largest = max(self.sizes, key=self.sizes.__getitem__)
        if self.sizes[largest]:
            load_state(halves, self.networks[largest])

    def scalars(self) -> dict[str, float]:
        return {f"cluster/clients_{cluster}": float(size) for cluster, size in self.sizes.items()}

    def serving(self, client: int) -> tuple[nn.Module, nn.Module]:
        if len(self.networks) == 1 or not len(self.population.rows[client]):
            return super().serving(client)
        room = (copy.deepcopy(self.client_half), copy.deepcopy(self.server_half))
        load_state(nn.ModuleList(room), self.networks[self.cluster_of(client, room)])
        return room

    # --- what outlives a round --------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Any]:
        return {**super().memory(), "networks": self.networks}

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory)
        self.networks = [self.brought_home(state) for state in memory["networks"]]
