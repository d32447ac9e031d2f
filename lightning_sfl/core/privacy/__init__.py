"""What is done to updates before they are merged; importing them registers their short names for configs."""

from lightning_sfl.core.privacy.base import Privacy
from lightning_sfl.core.privacy.central import CentralDP
from lightning_sfl.core.privacy.local import LocalDP
from lightning_sfl.core.privacy.masking import GradientMasking
from lightning_sfl.core.privacy.secure import SecureAggregation

__all__ = ["CentralDP", "GradientMasking", "LocalDP", "Privacy", "SecureAggregation"]
