"""A claim, what was found about it, and the words that carry the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["supported", "refuted", "true under a condition"]


@dataclass(frozen=True)
class Claim:
    """condition: under which it is true, or why it is not; figures: name -> value with its interval."""

    number: int
    text: str
    verdict: Verdict
    condition: str
    figures: dict[str, str]
