"""Where every command begins: what needs no torch is dispatched here, at once; the rest goes to the LightningCLI."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["compare"]:
        from lightning_sfl.records.compare import main as compare

        compare(given[1:])
    elif given[:1] == ["sweep"]:
        from lightning_sfl.sweep_command import main as sweep

        sweep(given[1:])
    elif given[:1] == ["gradients"]:
        from lightning_sfl.gradients_command import main as gradients

        gradients(given[1:])
    else:
        train(given)


def train(arguments: Sequence[str]) -> None:
    """Hand over to Lightning; end the process group, without which some good runs abort at exit."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a process that is gone is told in one line, not in forty
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.errors import record

    from lightning_sfl.cli import main as command_line

    try:
        record(command_line)(arguments)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
