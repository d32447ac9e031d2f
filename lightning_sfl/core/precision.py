"""Precisions that can be trained in: those that do not scale losses.

A gradient that comes back through the cut carries the scale of the server's loss already, and would get it twice.
"""

PRECISIONS = ("32-true", "64-true", "bf16-mixed")
ALLOWED = f"one of {', '.join(PRECISIONS)}; 16-mixed would scale what comes back through the cut twice"
