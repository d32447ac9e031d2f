"""The entry point in a checkout: `python train.py fit ...` or `fabric run train.py fit ...`."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from lightning_sfl.cli import main


@record
def entry() -> None:
    """Run the command line; end the process group, without which some good runs abort at exit."""
    try:
        main()
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    entry()
