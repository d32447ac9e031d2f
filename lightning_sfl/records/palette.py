"""One colour and one marker for each method, the same in every picture.

Tones after Okabe and Ito and after Paul Tol, chosen for the common colour blindnesses; with this many methods no set of
colours is safe alone, so methods whose tones come close have markers of different shape.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
METHODS: dict[str, tuple[str, str]] = {
    "sfl": ("#0072b2", "o"),
    "sfl_v1": ("#56b4e9", "s"),
    "sfl_v2": ("#332288", "^"),
    "split_learning": ("#882255", "v"),
    "minibatch_sfl": ("#d55e00", "D"),
    "usfl": ("#009e73", "P"),
    "scala": ("#6c4800", "$S$"),
    "scaffold_sfl": ("#d000b0", "|"),
    "sfl_prox": ("#00d068", "$\\cup$"),
    "gas": ("#e69f00", "X"),
    "mix2sfl": ("#cc79a7", "<"),
    "multisfl": ("#117733", ">"),
    "fedavg": ("#000000", "h"),
    "fedsgd": ("#777777", "d"),
    "fedasync": ("#9900ff", "x"),
    "fedbuff": ("#cc1133", "+"),
    "ca2fl": ("#842484", "$C$"),
    "per_fedavg": ("#b072f6", "1"),
    "reptile": ("#6105b4", "2"),
    "ifca": ("#351643", "3"),
    "cfl": ("#003c30", "4"),
    "centralized": ("#999933", "p"),
    "holograd": ("#661100", "8"),
}
STRANGE_MARKERS = ("*", "H")
STRANGERS = ("#44aa99", "#aa4499", "#b8860b", "#6a3d9a", "#5f6b2d", "#a0522d")


def place_of(method: str) -> int:
    """Where a method stands among the rows: in the order above, strangers last."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)


@dataclass(frozen=True)
class Style:
    """How a row is drawn: colour and marker of its method, dashes of its variant, a paler tone where these run out."""

    colour: str
    marker: str
    dashes: object


def style_of(method: str, variant: int = 0) -> Style:
    """The style of a method, known or not: always the same for the same name."""
    if method in METHODS:
        colour, marker = METHODS[method]
    else:
        digest = hashlib.sha256(method.encode()).digest()
        colour, marker = STRANGERS[digest[0] % len(STRANGERS)], STRANGE_MARKERS[digest[1] % len(STRANGE_MARKERS)]
    again, place = divmod(variant, len(DASHES))
    return Style(towards_white(colour, 0.3 * min(again, 2)), marker, DASHES[place])


def towards_white(colour: str, share: float) -> str:
    """`#rrggbb` mixed with so much white: 0 leaves it, 1 is white."""
    parts = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (255 - part)):02x}" for part in parts)
