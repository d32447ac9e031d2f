"""No code from data, no swallowed errors, no output from the inside: names and calls that must not occur."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import pytest

FORBIDDEN_CALLS = {
    "eval": "it runs text",
    "exec": "it runs text",
    "compile": "it makes code from text",
    "yaml.load": "it builds objects: yaml.safe_load",
    "yaml.unsafe_load": "it builds objects: yaml.safe_load",
    "yaml.full_load": "it builds objects: yaml.safe_load",
    "os.system": "it hands text to a shell",
    "os.popen": "it hands text to a shell",
    "torch.package": "it runs code from a file",
    "torch.jit.load": "it runs code from a file",
}
FORBIDDEN_ATTRIBUTES = {
    "all_gather_object": "it pickles",
    "gather_object": "it pickles",
    "scatter_object_list": "it pickles",
    "broadcast_object_list": "it pickles",
    "send_object_list": "it pickles",
    "recv_object_list": "it pickles",
}
FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
SPEAKERS = ("lightning_sfl.cli", "lightning_sfl.records", "lightning_sfl.doctor")


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of attributes, or what of it is a plain name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def torch_load_unsafe(call: ast.Call) -> bool:
    """torch.load(...) and partial(torch.load, ...) must say weights_only=True themselves."""
    loads = dotted(call.func) == "torch.load" or (call.args and dotted(call.args[0]) == "torch.load")
    return bool(loads) and not keyword_is(call, "weights_only", True)


def keyword_is(call: ast.Call, name: str, value: object) -> bool:
    return any(
        keyword.arg == name and isinstance(keyword.value, ast.Constant) and keyword.value.value is value
        for keyword in call.keywords
    )


def offences(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """Line and reason of everything forbidden in one file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from ((node.lineno, reason) for reason in call_offences(node, module))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, reason) for reason in import_offences(node))
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            yield node.lineno, f"{node.attr}: {FORBIDDEN_ATTRIBUTES[node.attr]}"
        elif isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            if node.type is None or "Exception" in caught.strip("()").replace(" ", "").split(","):
                yield node.lineno, f"except {caught}: say what is expected"
        elif isinstance(node, ast.Global):
            yield node.lineno, "global"


def import_offences(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    names = [alias.name for alias in node.names]
    modules = names if isinstance(node, ast.Import) else [node.module or ""]
    harmless = isinstance(node, ast.ImportFrom) and names == ["UnpicklingError"]
    if "*" in names:
        yield "star import"
    for module in modules:
        if module.split(".", maxsplit=1)[0] in FORBIDDEN_MODULES and not harmless:
            yield f"import of {module}"


def call_offences(call: ast.Call, module: str) -> Iterator[str]:
    name = dotted(call.func)
    if name in FORBIDDEN_CALLS:
        yield f"{name}: {FORBIDDEN_CALLS[name]}"
    if torch_load_unsafe(call):
        yield "torch.load without weights_only=True"
    if keyword_is(call, "shell", True):
        yield "shell=True"
    if keyword_is(call, "allow_pickle", True):
        yield "allow_pickle=True"
    if keyword_is(call, "trust_remote_code", True):
        yield "trust_remote_code=True"
    if name == "print" and not module.startswith(SPEAKERS):
        yield "print: only the command line speaks"


def test_our_source_holds_nothing_forbidden(sources: list[Any]) -> None:
    found = [f"{s.path}:{line} {reason}" for s in sources for line, reason in offences(s.tree, s.module)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import *",
        "eval(x)",
        "torch.load(path)",
        "torch.load(path, weights_only=flag)",
        "partial(torch.load, map_location='cpu')",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "dist.broadcast_object_list(x)",
        "gather = dist.all_gather_object",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept (ValueError, Exception):\n    pass",
        "try:\n    f()\nexcept:\n    pass",
        "def f():\n    global x",
        "print(1)",
        "yaml.load(x)",
        "os.system(x)",
    ],
)
def test_the_rules_see_what_they_forbid(text: str) -> None:
    assert list(offences(ast.parse(text), "lightning_sfl.core.cut"))


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "re.compile(x)",
        "model.compile()",
        "from pickle import UnpicklingError",
        "torch.load(path, weights_only=True)",
        "partial(torch.load, weights_only=True)",
        "try:\n    f()\nexcept (ValueError, UnpicklingError):\n    pass",
    ],
)
def test_the_rules_leave_the_rest_alone(text: str) -> None:
    assert not list(offences(ast.parse(text), "lightning_sfl.core.cut"))
