"""What a check says: one line each, with what was compared and the difference that was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lightning_sfl.core.errors import SFLError, require

if TYPE_CHECKING:
    from lightning_sfl.checks.bench import Bench

State = Literal["ok", "failed", "not applicable"]
# What code of others may raise when it is asked to train under unusual circumstances.
FAILURES = (SFLError, ArithmeticError, AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


class NotApplicable(Exception):
    """This check has no meaning here; the text says why."""


@dataclass(frozen=True)
class Measured:
    """A difference, or a count of them, against what is allowed; `detail`: what else a reader wants to know."""

    difference: float
    allowed: float = 0.0
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.difference <= self.allowed

    def text(self) -> str:
        """The difference as one writes it."""
        return "exact" if self.difference == 0 else f"{self.difference:.2g}"


@dataclass(frozen=True)
class Check:
    """name: how it is called in `--skip` and by a method's `departures`; compared: the two sides, in words."""

    name: str
    compared: str
    run: Callable[[Bench], Measured]


@dataclass(frozen=True)
class Finding:
    """The line of one check."""

    check: Check
    state: State
    difference: str = ""
    reason: str = ""

    def line(self) -> str:
        """`ok  repeat  exact  two runs ...`"""
        said = f"{self.check.compared}{f': {self.reason}' if self.reason else ''}"
        return f"{self.state:<14}  {self.check.name:<12}  {self.difference:<8}  {said}"


def examine(bench: Bench, checks: Sequence[Check], skip: Sequence[str] = ()) -> Iterator[Finding]:
    """Carry the checks out one by one; ConfigError where `skip` names none of them."""
    names = [check.name for check in checks]
    for name in skip:
        require(name in names, "skip", name, f"names of lines: {', '.join(names)}")
    for check in checks:
        yield finding(bench, check, check.name in skip)


def finding(bench: Bench, check: Check, skipped: bool = False) -> Finding:
    """Carry one check out; a method's own `departures` come before anything is run."""
    if skipped:
        return Finding(check, "not applicable", reason="left out by --skip")
    try:
        departure = bench.departures.get(check.name)
        if departure is not None:
            return Finding(check, "not applicable", reason=departure)
        found = check.run(bench)
    except NotApplicable as reason:
        return Finding(check, "not applicable", reason=str(reason))
    except FAILURES as error:
        return Finding(check, "failed", reason=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Finding(check, "ok" if found.holds else "failed", found.text(), found.detail)
