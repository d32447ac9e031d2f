"""Our own source, parsed once for all the rules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Import:
    """`module` as written in full, the names taken from it, and whether it stands inside a function."""

    line: int
    module: str
    names: tuple[str, ...]
    lazy: bool


@dataclass(frozen=True)
class Source:
    """One of our files; `module` is its import path once installed."""

    path: str
    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def layer(self) -> str:
        """`core`, `methods`, ... for files in subpackages; the file's own name for those at the top."""
        return [*self.module.split("."), "__init__"][1]

    @cached_property
    def imports(self) -> list[Import]:
        lazy = {
            id(inner)
            for outer in ast.walk(self.tree)
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(outer)
        }
        return [
            Import(node.lineno, module, names, id(node) in lazy)
            for node in ast.walk(self.tree)
            for module, names in self._imported(node)
        ]

    def _imported(self, node: ast.AST) -> Iterator[tuple[str, tuple[str, ...]]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            package = self.module if self.path.endswith("__init__.py") else self.module.rpartition(".")[0]
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])]), tuple(alias.name for alias in node.names)


def read(path: Path) -> Source:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in ("callbacks", "configs"):
        parts = ("lightning_sfl", *parts)
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Source(path.relative_to(ROOT).as_posix(), module, path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    folders = ("lightning_sfl", "callbacks", "configs")
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [read(path) for path in [*found, ROOT / "train.py"]]


@pytest.fixture(scope="session")
def test_sources() -> list[Source]:
    return [read(path) for folder in ("tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.fixture(scope="session")
def methods(sources: list[Source]) -> list[Source]:
    """The files of methods/ that hold a method, a class with a name of its own; the others are what it is made of."""
    return [s for s in sources if s.layer == "methods" and re.search(r'^    name = "\w+"$', s.text, re.MULTILINE)]
