"""Which process and device holds which half, and the messages between them."""

from lightning_sfl.placement.settings import Placement
from lightning_sfl.placement.strategy import SplitStrategy

__all__ = ["Placement", "SplitStrategy"]
