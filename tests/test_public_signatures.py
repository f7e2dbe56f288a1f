"""The public names with their types, as they stand in the source: what type checkers read must go on holding.

`tests/test_public.py` has what can be called at run time, and how; this has annotations and defaults as well. They are
read from the syntax tree: `inspect` writes types differently from version to version.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import threadmail.testing
from threadmail import _public

#: Made by `python -m tests.test_public_signatures`; a difference is one that users' type checkers notice.
RECORD = Path(__file__).with_name("data") / "public_signatures.txt"
SPECIAL = ("__init__", "__enter__", "__exit__", "__iter__", "__next__", "__len__", "__getitem__", "__eq__", "__hash__")
#: Decorators that change the type; ours keep it.
TELLING = ("property", "cached_property", "classmethod", "staticmethod", "contextmanager", "overload")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parsed(module: types.ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def homes(package: str, module: types.ModuleType) -> dict[str, types.ModuleType]:
    """Where each public name of `package` is defined, as the imports of `module` say."""
    imports = [node for node in ast.walk(parsed(module)) if isinstance(node, ast.ImportFrom) and node.level]
    return {
        alias.name: importlib.import_module(f"{package}.{node.module}")
        for node in imports
        if node.module
        for alias in node.names
    }


def definition(name: str, module: types.ModuleType) -> ast.stmt:
    for node in parsed(module).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [ast.unparse(target) for target in targets]
        elif isinstance(node, ast.ImportFrom) and node.level and name in [alias.name for alias in node.names]:
            home = "." * node.level + (node.module or "")
            return definition(name, importlib.import_module(home, module.__package__))
        else:
            continue
        if name in names:
            return node
    raise LookupError(f"{module.__name__} has no {name}")


def signature(node: Function, name: str) -> str:
    marks = "".join(f"@{mark} " for mark in map(ast.unparse, node.decorator_list) if mark in TELLING)
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{marks}{name}({ast.unparse(node.args)}){result}"


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in SPECIAL


def attributes(init: Function) -> Iterator[str]:
    """What a constructor sets, with the type that stands there, or that of the argument it is."""
    given = {arg.arg: arg.annotation for arg in (*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs)}
    for node in ast.walk(init):
        targets: list[ast.expr] = []
        kind: ast.expr | None = None
        if isinstance(node, ast.AnnAssign):
            targets, kind = [node.target], node.annotation
        elif isinstance(node, ast.Assign):
            targets = node.targets
            if isinstance(node.value, ast.Name):
                kind = given.get(node.value.id)
        for target in targets:
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self" and is_public(target.attr):
                yield f"{target.attr}: {ast.unparse(kind) if kind else '?'}"


def members(node: ast.ClassDef) -> Iterator[str]:
    for each in node.body:
        if isinstance(each, Function) and is_public(each.name):
            yield signature(each, each.name)
            if each.name == "__init__":
                yield from attributes(each)
        elif isinstance(each, (ast.Assign, ast.AnnAssign)):
            target = each.target if isinstance(each, ast.AnnAssign) else each.targets[0]
            if is_public(ast.unparse(target)):
                yield ast.unparse(each)


def section(shown: str, node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef):
        marks = "".join(f"@{ast.unparse(mark)} " for mark in node.decorator_list)
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return [f"{marks}class {shown}({bases})", *sorted({f"    {member}" for member in members(node)})]
    if isinstance(node, ast.FunctionDef):
        return [signature(node, shown)]
    assert isinstance(node, (ast.Assign, ast.AnnAssign))
    return [f"{shown} = {ast.unparse(node.value) if node.value else ''}"]


def listed() -> list[str]:
    lines: list[str] = []
    seen: set[type] = set()
    bases: dict[type, None] = {}
    for package, module in ((threadmail, _public), (threadmail.testing, threadmail.testing)):
        home = homes(package.__name__, module)
        for name in sorted(package.__all__):
            lines += section(f"{package.__name__}.{name}", definition(name, home[name]))
            named = getattr(package, name)
            if inspect.isclass(named) and not isinstance(named, types.GenericAlias):  # which passes for one on 3.10
                seen.add(named)
                bases.update(dict.fromkeys(named.__mro__[1:]))
    lines.append("# Bases that have no public name of their own.")
    private = [base for base in bases if base.__module__.startswith("threadmail") and base not in seen]
    for base in sorted(private, key=lambda base: base.__name__):
        lines += section(base.__name__, definition(base.__name__, importlib.import_module(base.__module__)))
    return lines


def test_what_type_checkers_read_goes_on_holding() -> None:
    recorded = RECORD.read_text(encoding="utf-8").splitlines()
    changes = "\n".join(difflib.unified_diff(recorded, listed(), "recorded", "now", lineterm="", n=0))
    assert not changes, f"python -m tests.test_public_signatures, and a line in CHANGELOG:\n{changes}"


def test_no_public_attribute_is_without_a_type() -> None:
    assert [line for line in RECORD.read_text(encoding="utf-8").splitlines() if line.endswith(": ?")] == []


if __name__ == "__main__":
    RECORD.write_text("\n".join(listed()) + "\n", encoding="utf-8")
