"""Which methods have an option is read off their signatures; reasons are given for options that some methods lack."""

from __future__ import annotations

import pytest

from lightning_sfl import foreign_options
from lightning_sfl.class_names import kind_of
from lightning_sfl.foreign_options import helps_of, no_meaning, owners_of
from lightning_sfl.methods import FedAsync, FedBuff

METHODS = set(kind_of("model").names())


def test_an_option_that_a_method_binds_is_not_its_own() -> None:
    """FedAsync gives its base a `model_buffer`, and takes `arrivals` instead."""
    assert {*owners_of("model_buffer")} == {"CA2FL", "FedBuff", "GAS"}
    assert "model_buffer" in helps_of(FedBuff)
    assert "model_buffer" not in helps_of(FedAsync)


@pytest.mark.parametrize("option", ["self", "kwargs", "backbones", "cluster", "", "why_not_moved"])
def test_what_no_method_has_may_be_a_slip(option: str) -> None:
    assert owners_of(option) == {}
    assert no_meaning(option, ["backbone"], "SFL") is None


def test_what_the_method_knows_is_its_own() -> None:
    assert no_meaning("robust.foo", ["robust.rule", "robust.trim"], "mine.Mine") is None
    line = no_meaning("robust.foo", ["basis.rank"], "mine.Mine")
    assert line is not None
    assert line.startswith("model.robust has no meaning for Mine; HoloGrad has it: ")


@pytest.mark.parametrize("option", foreign_options._REASONS)
def test_reasons_are_for_options_that_some_methods_lack(option: str) -> None:
    owners = owners_of(option)
    assert 0 < len(owners) < len(METHODS)
    line = no_meaning(option, [], "mine.Mine")
    assert line is not None
    assert line.count("Mine") == 2
    assert line.endswith((" has it", " have it"))
    assert len(line) < 300
