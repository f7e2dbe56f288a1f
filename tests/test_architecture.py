"""The layers: a file imports only from its left, so that a bug has an address."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "threadmail"

#: From left to right. A new module needs a place here, and a sentence of its own at its head.
ORDER = [
    *("errors", "_life", "_numbers", "_deadline", "_locks", "_threads"),
    *("_address", "_address_field", "_plain", "_message", "_flatten", "_file", "_content", "_sevenbit"),
    *("envelope", "receipt", "_barred", "_riding", "config"),
    *("_tls", "_socket", "_wire", "transaction", "_passage", "_window", "_delivery"),
    *("_lookup", "_guard", "_line", "_dialogue", "_mailing", "_login", "_connecting", "smtp"),
    *("retry", "throttle", "_breaker"),
    *("_opening", "_idle", "_heard", "_kept", "_turn", "client"),
    *("_steps", "_room", "_has", "_keys", "_leases", "_redial", "_departed", "pool"),
    *("_exit", "_job", "_limits", "_timeheap", "_schedule", "_verdict", "_worker"),
    *(
        "_sender_stats",
        "_leavings",
        "_conclusions",
        "_teller",
        "_starter",
        "_closing",
        "_door",
        "_withdrawal",
        "_dispatcher",
    ),
    *("_collector", "_stream", "sender"),
]

#: These see everything, and nobody sees them.
ON_TOP = ("cli", "_cli_", "__main__", "__init__", "testing")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that `path` imports at run time; imports for type checkers bind nothing."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("threadmail")):
            inside = (node.module or "").removeprefix("threadmail").lstrip(".")
            yield from [inside.partition(".")[0]] if inside else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("threadmail."))


def is_on_top(path: Path) -> bool:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return name.startswith(ON_TOP)


@pytest.mark.parametrize("path", [p for p in modules() if not is_on_top(p)], ids=lambda p: p.stem)
def test_a_module_imports_only_from_its_left(path: Path) -> None:
    assert path.stem in ORDER, f"{path.name} has no place in the order of layers"
    left = ORDER[: ORDER.index(path.stem)]
    assert set(imported(path)) <= set(left)


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path.name} has no docstring"


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_lock_is_made_at_import(path: Path) -> None:
    """A lock at module level could not be put under the control of the scheduler that proves the locking."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            calls = [ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)]
            assert not [c for c in calls if c.startswith("threading.")], ast.unparse(node)


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_threading_and_socket_are_reached_through_their_modules(path: Path) -> None:
    """`threading.RLock()` at call time can be replaced by a scheduler; a name imported from the module cannot."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module not in ("threading", "socket", "time"), ast.unparse(node)


def test_the_core_needs_the_standard_library_only() -> None:
    import sys

    for path in modules():
        if is_on_top(path):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                assert name.partition(".")[0] in {*sys.stdlib_module_names, "_typeshed"}, f"{path.name}: {name}"


#: What several threads share under a re-entrant lock.
SHARED = {
    "workers",
    "leaving",
    "in_flight",
    "untold",
    "line",
    "leased",
    "dialling",
    "idle",
    "ending",
    "closers",
    "waiters",
}


@pytest.mark.parametrize(
    "name", ["_schedule", "_dispatcher", "_leavings", "_conclusions", "_closing", "_withdrawal", "_keys", "pool"]
)
def test_a_loop_over_what_is_shared_goes_over_a_copy(name: str) -> None:
    """A finaliser or a signal handler of the same thread gets in where a loop turns, and may change what is there."""
    loops = [
        node.iter.func.value
        if isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Attribute)
        else node.iter
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text()))
        if isinstance(node, (ast.For, ast.comprehension))
    ]
    assert [ast.unparse(loop) for loop in loops if isinstance(loop, ast.Attribute) and loop.attr in SHARED] == []
