"""What a checkpoint of a method holds, and which checkpoints it accepts."""

from __future__ import annotations

from typing import Any, ClassVar

import lightning as L
import torch

from lightning_sfl.core.errors import CheckpointError

FORMAT = 1


class PersistentModule(L.LightningModule):
    """Keeps the slots out of checkpoints and refuses what another method, cut or partition wrote.

    Between rounds every slot is about to be overwritten, so a checkpoint holds the merged halves only and does not
    depend on how many participants, or processes, there were. Methods whose slots do last put them in their `memory`.

    one_network: whether the merged halves are the one network that a checkpoint is about.
    """

    one_network: ClassVar[bool] = True
    loaded_memory: dict[str, Any] | None = None

    def identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the method that loads it."""
        return {"method": self.method_name, "revision": self.revision, "cut_layer": self.cut_layer}

    def data_identity(self) -> dict[str, Any]:
        """What must agree, besides, when training goes on."""
        return {"seed": self.seed, "partition": self.population.fingerprint if self.population else None}

    def memory(self) -> dict[str, Any]:
        """What training goes on from besides the merged halves: tensors and plain containers, by name."""
        return {}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take up what `memory` gave; called on the device, before the first round."""

    def recall_memory(self) -> None:
        """Recall the memory of the checkpoint that was loaded, if one was."""
        if self.loaded_memory is not None:
            self.recall(self.loaded_memory)
            self.loaded_memory = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: sign the checkpoint."""
        checkpoint["lightning_sfl"] = {
            "format": FORMAT,
            "example": self.example,
            **self.identity(),
            **self.data_identity(),
            "memory": self.memory(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: check the signature; cut the network when no data has done it yet."""
        training = self._trainer is not None and self.trainer.state.fn == "fit"
        self.check_signature(checkpoint, training)
        if not self.is_cut:
            example = checkpoint["lightning_sfl"]["example"]
            self.cut(torch.zeros(example["shape"], dtype=getattr(torch, example["dtype"])))
        if training:
            self._fit_to_slots(checkpoint["optimizer_states"])
            self.loaded_memory = checkpoint["lightning_sfl"]["memory"]

    def check_signature(self, checkpoint: dict[str, Any], training: bool) -> None:
        """Refuse a checkpoint of another method, cut or format, and of other data when training is to go on."""
        signed = checkpoint.get("lightning_sfl")
        if signed is None:
            raise CheckpointError("this checkpoint was not written by lightning_sfl")
        if signed["format"] > FORMAT:
            raise CheckpointError(f"checkpoint format {signed['format']} is newer than this version's {FORMAT}")
        for key, value in (self.identity() | (self.data_identity() if training else {})).items():
            if signed.get(key) != value:
                raise CheckpointError(f"the checkpoint has {key}={signed.get(key)!r}, this run {key}={value!r}")

    def _fit_to_slots(self, optimizer_states: list[dict[str, Any]]) -> None:
        for state, (role, parameters) in zip(optimizer_states, self.trained().items(), strict=True):
            optimizer, schedule = self.build_optimizer(role, parameters)
            for group, fresh in zip(state["param_groups"], optimizer.param_groups, strict=True):
                # A checkpoint must not override the settings of this run; a schedule's learning rate is no setting.
                group.update({k: v for k, v in fresh.items() if k != "params" and (schedule is None or k != "lr")})
                # State is empty between rounds, so the number of parameters may follow the number of slots.
                if not state["state"]:
                    group["params"] = list(range(len(fresh["params"])))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Parameters and buffers of everything but the slots."""
        full: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in full.items() if not name.startswith(("slots.", "server_slots."))}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave, but for what another selection remembered; the slots stay as they are."""
        known = self.state_dict()
        state_dict = {k: tensor for k, tensor in state_dict.items() if k in known or not k.startswith("selection.")}
        missing = {name: tensor for name, tensor in super().state_dict().items() if name not in known}
        try:
            return super().load_state_dict({**missing, **state_dict}, strict=strict, assign=assign)
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint does not fit this network: {' '.join(str(error).split())}") from None
