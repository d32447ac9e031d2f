"""House rules with numbers: short files, short functions, a docstring for whatever is public, names of the field."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

FILE_LINES = 250
METHOD_FILE_LINES = 150
FUNCTION_LINES = 60
PARAMETERS = 7
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler", "organizer", "tools"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public_definitions(node: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Public classes and functions, and public methods of public classes."""
    for child in node.body:
        if isinstance(child, Function | ast.ClassDef) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child)


def explained_above(tree: ast.Module) -> set[str]:
    """Methods of classes that have a base: what they promise may be said there."""
    return {
        child.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.bases
        for child in node.body
        if isinstance(child, Function)
    }


def test_files_are_short(sources: list[Any]) -> None:
    offenders = [f"{s.path}: {lines} lines" for s in sources if (lines := s.text.count("\n")) > FILE_LINES]
    assert not offenders, f"more than {FILE_LINES} lines:\n" + "\n".join(offenders)


def test_method_files_read_like_their_papers_box(methods: list[Any]) -> None:
    offenders = [f"{s.path}: {lines} lines" for s in methods if (lines := s.text.count("\n")) > METHOD_FILE_LINES]
    assert not offenders, f"more than {METHOD_FILE_LINES} lines:\n" + "\n".join(offenders)


def test_functions_are_short(sources: list[Any]) -> None:
    offenders = []
    for source in sources:
        for function in functions(source.tree):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > FUNCTION_LINES:
                offenders.append(f"{source.path}:{function.lineno} {function.name}: {lines} lines")
    assert not offenders, f"more than {FUNCTION_LINES} lines:\n" + "\n".join(offenders)


def test_functions_have_few_parameters(sources: list[Any]) -> None:
    """Constructors are settings, one per key of a config, and are not counted."""
    offenders = []
    for source in sources:
        for function in functions(source.tree):
            given = [a.arg for a in [*function.args.args, *function.args.kwonlyargs] if a.arg not in ("self", "cls")]
            if len(given) > PARAMETERS and function.name != "__init__":
                offenders.append(f"{source.path}:{function.lineno} {function.name}: {len(given)}")
    assert not offenders, f"more than {PARAMETERS} parameters:\n" + "\n".join(offenders)


def test_every_module_says_what_it_is(sources: list[Any], test_sources: list[Any]) -> None:
    offenders = [s.path for s in [*sources, *test_sources] if not ast.get_docstring(s.tree)]
    assert not offenders, "without a docstring:\n" + "\n".join(offenders)


def test_whatever_is_public_has_a_docstring(sources: list[Any]) -> None:
    offenders = [
        f"{source.path}:{definition.lineno} {definition.name}"
        for source in sources
        for definition in public_definitions(source.tree)
        if not (ast.get_docstring(definition) or definition.name in explained_above(source.tree) or trivial(definition))
    ]
    assert not offenders, "without a docstring:\n" + "\n".join(offenders)


def trivial(definition: Function | ast.ClassDef) -> bool:
    """A property of one line says it all in its name."""
    return (
        isinstance(definition, ast.FunctionDef)
        and len(definition.body) == 1
        and any("property" in ast.unparse(decorator) for decorator in definition.decorator_list)
    )


def test_files_are_nouns_of_the_field(sources: list[Any]) -> None:
    offenders = [s.path for s in sources if VAGUE & set(re.split(r"[/._]", s.path))]
    assert not offenders, "vague names:\n" + "\n".join(offenders)


def test_everything_is_annotated(sources: list[Any]) -> None:
    offenders = []
    for source in sources:
        for function in functions(source.tree):
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or function.returns is None:
                offenders.append(f"{source.path}:{function.lineno} {function.name} {' '.join(bare)}")
    assert not offenders, "without annotations:\n" + "\n".join(offenders)


def test_source_is_ascii_and_has_no_path_of_a_machine(sources: list[Any], test_sources: list[Any]) -> None:
    offenders = []
    for source in [*sources, *test_sources]:
        for number, line in enumerate(source.text.splitlines(), 1):
            if not line.isascii() or re.search(r"[\"'](/home/|/root/|/Users/)", line):
                offenders.append(f"{source.path}:{number} {line.strip()[:60]!a}")
    assert not offenders, "\n" + "\n".join(offenders)


def test_no_todo_without_an_address(sources: list[Any]) -> None:
    offenders = [
        f"{s.path}:{number}"
        for s in sources
        for number, line in enumerate(s.text.splitlines(), 1)
        if re.search(r"\b(TODO|FIXME|XXX)\b", line) and "http" not in line
    ]
    assert not offenders, "\n" + "\n".join(offenders)
