"""Imports run one way: a layer knows only the layers listed for it, and Lightning is met in few places."""

from __future__ import annotations

import sys
from typing import Any

ONLY_LAZY = {"matplotlib", "datasets", "PIL", "pyarrow", "opacus"}
OPTIONAL = {*ONLY_LAZY, "tqdm"}

# layer -> (our layers, other packages) it may import; layers that are not listed stand on top and may import anything.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "core": ({"core"}, {"torch", "numpy", "opacus"}),
    "backbones": ({"backbones", "core.errors"}, {"torch"}),
    "measures": ({"measures", "core"}, {"torch"}),
    "records": ({"records", "core.errors", "durable", "plain_parser"}, {"matplotlib", "yaml", "click"}),
    "data": ({"data", "core"}, {"torch", "numpy", "lightning", "jsonargparse", "typing_extensions", *OPTIONAL}),
    "methods": ({"methods", "core", "__version__"}, {"torch", "numpy", "lightning", "torchmetrics"}),
    "placement": ({"placement", "core"}, {"torch", "lightning"}),
    "callbacks": (
        {"callbacks", "measures", "records", "core", "__version__"},
        {"torch", "numpy", "lightning", "matplotlib", "tqdm", "click"},
    ),
    "checkpoint": ({"core.errors", "durable"}, {"torch", "lightning"}),
    "durable": (set(), set()),
}
LIGHTNING_IN_DATA = {"lightning_sfl.data.datamodule"}
ENTRIES = {
    "lightning_sfl.cli",
    "lightning_sfl.commands",
    "lightning_sfl.arguments",
    "lightning_sfl.trainer",
    "lightning_sfl.doctor",
    "lightning_sfl.entry",
    "lightning_sfl.sweep",
    "lightning_sfl.sweep_command",
    "train",
    "callbacks",
    "configs",
}


def ours(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] == "lightning_sfl"


def inside(module: str, layers: set[str]) -> bool:
    return any(f"{module}.".startswith(f"lightning_sfl.{layer}.") for layer in layers)


def targets(source: Any) -> list[tuple[Any, str]]:
    """Every import of our own with what it means: `from lightning_sfl.core import cut` is lightning_sfl.core.cut."""
    return [
        (found, module)
        for found in source.imports
        if ours(found.module)
        for module in ([f"{found.module}.{name}" for name in found.names] or [found.module])
    ]


def test_each_layer_imports_only_the_layers_below(sources: list[Any]) -> None:
    offenders = []
    for source in sources:
        if source.layer in ALLOWED and source.path.count("/"):
            allowed = ALLOWED[source.layer][0]
            offenders += [
                f"{source.path}:{found.line} {source.layer} imports {module}"
                for found, module in targets(source)
                if not inside(module, allowed) and found.module != source.module
            ]
    assert not offenders, "\n" + "\n".join(offenders)


def test_each_layer_uses_only_its_packages(sources: list[Any]) -> None:
    offenders = []
    for source in sources:
        known = ALLOWED.get(source.layer)
        for found in source.imports:
            package = found.module.split(".")[0]
            stranger = package not in sys.stdlib_module_names and not ours(found.module)
            if known and stranger and package not in known[1]:
                offenders.append(f"{source.path}:{found.line} {source.layer} imports {package}")
    assert not offenders, "\n" + "\n".join(offenders)


def test_in_data_lightning_is_met_in_the_datamodule_only(sources: list[Any]) -> None:
    offenders = [
        f"{source.path}:{found.line}"
        for source in sources
        if source.layer == "data" and source.module not in LIGHTNING_IN_DATA
        for found in source.imports
        if found.module.split(".")[0] == "lightning"
    ]
    assert not offenders, "\n" + "\n".join(offenders)


def test_no_method_imports_another_method(methods: list[Any]) -> None:
    names = {source.module for source in methods}
    offenders = [
        f"{source.path}:{found.line} imports {module}"
        for source in methods
        for found, module in targets(source)
        if found.module in {"lightning_sfl.methods", *names} or module in names
    ]
    assert not offenders, "\n" + "\n".join(offenders)


def test_methods_do_not_meet_lightning(methods: list[Any]) -> None:
    offenders = [
        f"{source.path}:{found.line}"
        for source in methods
        for found in source.imports
        if found.module.split(".")[0] == "lightning"
    ]
    assert not offenders, "\n" + "\n".join(offenders)


def test_nothing_but_entries_imports_an_entry(sources: list[Any]) -> None:
    offenders = [
        f"{source.path}:{found.line} imports {found.module}"
        for source in sources
        if source.layer in ALLOWED
        for found in source.imports
        if any(f"{found.module}.".startswith(f"{entry}.") for entry in ENTRIES)
    ]
    assert not offenders, "\n" + "\n".join(offenders)


def test_optional_and_heavy_packages_are_imported_where_they_are_used(sources: list[Any]) -> None:
    offenders = [
        f"{source.path}:{found.line} imports {found.module} at the top"
        for source in sources
        for found in source.imports
        if found.module.split(".")[0] in ONLY_LAZY and not found.lazy and not type_checking(source, found)
    ]
    assert not offenders, "\n" + "\n".join(offenders)


def type_checking(source: Any, found: Any) -> bool:
    """Whether the import stands indented under `if TYPE_CHECKING:`."""
    lines = source.text.splitlines()
    above = [line for line in lines[: found.line - 1] if line and not line.startswith(" ")]
    return lines[found.line - 1].startswith(" ") and above[-1].startswith("if TYPE_CHECKING")


def test_pytorch_lightning_is_never_imported(sources: list[Any], test_sources: list[Any]) -> None:
    offenders = [
        f"{source.path}:{found.line}"
        for source in [*sources, *test_sources]
        for found in source.imports
        if found.module.split(".")[0] == "pytorch_lightning"
    ]
    assert not offenders, "its classes are other objects than lightning's:\n" + "\n".join(offenders)
