"""What a run of the experiments is about."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.holograd.sizes import SIZES, Sizes


@dataclass(frozen=True)
class Setting:
    """size: a name in SIZES; the first task is the one that is trained on; data: folder of what is not bundled."""

    size: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    data: Path | None = None

    @property
    def sizes(self) -> Sizes:
        """The sizes of this name."""
        return SIZES[self.size]

    def recorded(self) -> dict[str, Any]:
        """What results depend on: cells measured under other settings are measured again."""
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.sizes).items()}
        return {"size": self.size, **plain}
