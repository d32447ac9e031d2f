"""What a run must not depend on, or is asked to depend on: global generators, the default type."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lightning_sfl.checks.finding import NotApplicable
from lightning_sfl.core.errors import ConfigError, DataError


@contextmanager
def stirred_generators() -> Iterator[None]:
    """Global generators in a state that no run has met before, given back as they were."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    fresh = np.random.SeedSequence().generate_state(1).item()
    torch.default_generator.manual_seed(fresh)
    np.random.seed(fresh)  # noqa: NPY002
    random.seed(fresh)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What new floating tensors are, given back as it was."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def refusals_are_reasons() -> Iterator[None]:
    """What the method refuses to train under is a reason why a check does not apply."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise NotApplicable(f"the method refuses it: {error}") from error
