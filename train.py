"""The entry point in a checkout: `python train.py fit ...` or `fabric run train.py fit ...`."""

from __future__ import annotations

from lightning_sfl.entry import main

if __name__ == "__main__":
    main()
