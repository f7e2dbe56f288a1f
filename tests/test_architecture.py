"""The layers: a file imports only from its left, so that a bug has an address."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "threadmail"

#: From left to right: public modules and folders. A new one needs a place here, and says at its head what it is for.
ORDER = [
    "errors",
    "_runtime",
    "_message",
    "envelope",
    "receipt",
    "_known",
    "config",
    "_protocol",
    "_transport",
    "_session",
    "smtp",
    "retry",
    "throttle",
    "_connection",
    "client",
    "_pool",
    "pool",
    "_dispatch",
    "sender",
]

#: These see everything, and nobody sees them.
ON_TOP = ("cli", "__main__", "__init__", "_public", "testing")

#: More than that in a folder nobody would look through, and more lines nobody would read.
MOST_MODULES, MOST_LINES = 20, 500


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted, below the package; a folder's `__init__` has the folder's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in modules()}


def run(path: Path) -> ast.Module:
    """`path` without what is for type checkers only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
    return tree


def imported(path: Path, *, for_types: bool = False) -> Iterator[str]:
    """The modules of the package that `path` imports at run time; and those for type checkers, which bind nothing."""
    tree = ast.parse(path.read_text()) if for_types else run(path)
    here = ["threadmail", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            if module.partition(".")[0] == "threadmail":
                below = module.partition(".")[2]
                for alias in node.names:
                    whole = ".".join(filter(None, [below, alias.name]))
                    yield whole if whole in MODULES else below
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.startswith("threadmail."))


def layer(name: str) -> str:
    return name.partition(".")[0]


def is_on_top(path: Path) -> bool:
    return layer(name_of(path)) in ON_TOP


@pytest.mark.parametrize("path", [p for p in modules() if not is_on_top(p)], ids=name_of)
def test_a_module_imports_only_from_its_left(path: Path) -> None:
    me = layer(name_of(path))
    assert me in ORDER, f"{path.name} has no place in the order of layers"
    left = ORDER[: ORDER.index(me) + 1]
    assert {layer(name) for name in imported(path)} <= set(left)


def test_no_modules_import_one_another_in_a_circle() -> None:
    TopologicalSorter({name: set(imported(path)) - {name} for name, path in MODULES.items()}).prepare()


def test_what_can_be_read_and_looked_through() -> None:
    folders = Counter(path.parent for path in modules() if path.stem != "__init__")
    assert {folder: number for folder, number in folders.items() if number > MOST_MODULES} == {}
    assert folders[PACKAGE] <= 18
    lines = {name: path.read_text().count("\n") for name, path in MODULES.items()}
    assert {name: number for name, number in lines.items() if number > MOST_LINES} == {}


def test_every_layer_is_there() -> None:
    assert set(ORDER) | set(ON_TOP) == {layer(name) for name in MODULES}


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
        for node in ast.walk(run(path)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                assert name.partition(".")[0] in sys.stdlib_module_names, f"{path.name}: {name}"


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
    "path", [*(PACKAGE / "_dispatch").glob("*.py"), *(PACKAGE / "_pool").glob("*.py"), PACKAGE / "pool.py"], ids=name_of
)
def test_a_loop_over_what_is_shared_goes_over_a_copy(path: Path) -> None:
    """A finaliser or a signal handler of the same thread gets in where a loop turns, and may change what is there."""
    loops = [
        node.iter.func.value
        if isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Attribute)
        else node.iter
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.For, ast.comprehension))
    ]
    assert [ast.unparse(loop) for loop in loops if isinstance(loop, ast.Attribute) and loop.attr in SHARED] == []
