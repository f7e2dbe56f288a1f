"""Takes the locking of a package apart, one piece at a time, mechanically.

A proof that finds nothing is worth what its suite would have found. This tool walks over the real source of a package
and yields one mutant for each piece of its locking; the proof suite must notice every one of them. It reads the
source, so new code is covered without anyone remembering. The pieces:

* guard: each `with <lock>:` (a value it gives is had, and the lock let go of, before the body), each pair of
  `<lock>.acquire()` and `<lock>.release()` in a function, each guarding decorator;
* loop: each `while` that has a wait in it becomes one pass through its body, if its condition holds (`if` for
  `while`);
* notify: each `notify()` and `notify_all()` is left out, and each `notify_all()` is weakened to `notify()`;
* wake: each `set()` of an event is left out;
* check: each `if` that follows a wait in its block, or a loop with a wait in it, is taken as not fulfilled; each call
  that follows a wait in its block and stands alone is left out.

What counts as a lock, a wait or a guard is a question of names, see `Names`. Putting a mutant in the place of the
real module is the part of mutant_loading.py.
"""

from __future__ import annotations

import ast
import copy
import difflib
import functools
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Names:
    """Regular expressions that say what is what, searched in the last part of a dotted name.

    `lock` also matches calls used as context managers, by their name (`with self._hold_lock(deadline):`) or by what
    they are given (`with holding(self._lock, deadline):`).
    """

    lock: str = r"(lock|locked|cond|condition|mutex|sync_root|guard|guarded|exclusive|not_empty|not_full)$"
    guard: str = r"^_?(guarded|locked|synchronized|serialized|exclusive)$"
    wait: str = r"^_?wait(_for|_until)?$"
    event: str = r"(event|wake|woken|stop|ended|done|finished)$"


@dataclass(frozen=True)
class Mutant:
    """One module with one piece of its locking taken away."""

    module: str
    line: int
    #: The function it is in, and what was done: together with the module they name it even after lines have moved.
    function: str
    kind: str
    description: str
    original: ast.Module = field(repr=False, compare=False)
    _change: Callable[[ast.Module], ast.Module] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        return f"{self.module}:{self.function}: {self.description}"

    @property
    def tree(self) -> ast.Module:
        """The mutated module, made anew each time: a hundred kept ones would slow down every garbage collection."""
        return self._change(copy.deepcopy(self.original))

    @property
    def source(self) -> str:
        """The mutated module as text."""
        return ast.unparse(self.tree)

    def diff(self) -> str:
        """What was changed."""
        before, after = ast.unparse(self.original).splitlines(), self.source.splitlines()
        return "\n".join(difflib.unified_diff(before, after, "original", "mutant", lineterm="", n=2))


def mutants_of(source: str, module: str, names: Names | None = None) -> Iterator[Mutant]:
    """All mutants of one module, in the order of its lines."""
    tree = ast.parse(source)
    finder = _Finder(names or Names(), source)
    finder.visit(tree)
    yield from mutants_at(finder.sites, tree, module)


def mutants_at(sites: Iterable[Site], tree: ast.Module, module: str) -> Iterator[Mutant]:
    """A mutant for each site of a module, in the order of its lines."""
    # A copy keeps the tree's shape, so a node is found again by its number in the walk.
    numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
    for site in sorted(sites, key=lambda site: (site.line, site.column)):
        change = functools.partial(_changed, site, [numbers[id(node)] for node in site.nodes])
        yield Mutant(module, site.line, site.function, site.kind, site.description, tree, change)


def _changed(site: Site, numbers: Iterable[int], copied: ast.Module) -> ast.Module:
    nodes = list(ast.walk(copied))
    for number in numbers:
        site.change(nodes[number])
    changed: ast.Module = ast.fix_missing_locations(_Rewriter().visit(copied))
    return changed


def package_mutants(package: str, names: Names | None = None, *, skip: Iterable[str] = ()) -> Iterator[Mutant]:
    """All mutants of all modules of a package; `skip` names modules left out (with their submodules)."""
    root = importlib.import_module(package)
    found = [package]
    found += sorted(info.name for info in pkgutil.walk_packages(root.__path__, package + "."))
    skipped = tuple(skip)
    for module in found:
        if any(module == name or module.startswith(name + ".") for name in skipped):
            continue
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            yield from mutants_of(Path(spec.origin).read_text(encoding="utf-8"), module, names)


# Finding the sites --------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """A place where something can be changed, and what that is."""

    kind: str
    description: str
    function: str
    line: int
    column: int
    nodes: Sequence[ast.AST]
    change: Callable[[ast.AST], None]


class _Finder(ast.NodeVisitor):
    def __init__(self, names: Names, source: str) -> None:
        self.names = names
        self._source = source
        self.sites: list[Site] = []
        self._path: list[str] = []

    def _text(self, node: ast.AST) -> str:
        """As it stands in the source, on one line: the same in every version of Python, as `ast.unparse` is not."""
        return " ".join((ast.get_source_segment(self._source, node) or "").split())

    def _add(self, kind: str, description: str, change: Callable[[ast.AST], None], *nodes: ast.AST) -> None:
        function = ".".join(self._path) or "<module>"
        count = sum(s.function == function and s.description.split(" #")[0] == description for s in self.sites)
        if count:
            description += f" #{count + 1}"
        # The item of a `with` has no place of its own.
        first = nodes[0].context_expr if isinstance(nodes[0], ast.withitem) else nodes[0]
        line, column = getattr(first, "lineno", 0), getattr(first, "col_offset", 0)
        self.sites.append(Site(kind, description, function, line, column, nodes, change))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._path.append(node.name)
        self._visit_block(node)
        self._path.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._path.append(node.name)
        for decorator in node.decorator_list:
            if self._called(decorator, self.names.guard):
                self._add("guard", f"without @{self._text(decorator)}", _mark_decorator, decorator)
        self._acquires(node)
        self._visit_block(node)
        self._path.pop()

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if self._guards(item.context_expr):
                self._add("guard", f"without `with {self._text(item.context_expr)}`", _no_guard, item)
        self._visit_block(node)

    def visit_While(self, node: ast.While) -> None:
        if self._waits(node):
            self._add("loop", f"`if` for `while {self._text(node.test)}`", _once, node)
        self._visit_block(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Attribute):
            what = self._text(node)
            if function.attr in ("notify", "notify_all"):
                self._add("notify", f"without {what}", _no_call, node)
            if function.attr == "notify_all":
                self._add("notify", f"notify() for {what}", _notify_one, node)
            if function.attr == "set" and not node.args and self._named(function.value, self.names.event):
                self._add("wake", f"without {what}", _no_call, node)
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        self._visit_block(node)

    def _visit_block(self, node: ast.AST) -> None:
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                self._checks(block)
        super().generic_visit(node)

    def _checks(self, block: list[ast.stmt]) -> None:
        waited = waited_here = False
        for statement in block:
            if waited and isinstance(statement, ast.If):
                self._add("check", f"`if {self._text(statement.test)}` never after the wait", _never, statement)
            if waited_here and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                self._add("check", f"without `{self._text(statement)}` after the wait", _no_call, statement.value)
            if self._waits(statement):
                waited = True
                waited_here |= isinstance(statement, (ast.Expr, ast.Assign, ast.AnnAssign))

    def _acquires(self, function: ast.FunctionDef) -> None:
        calls: dict[str, list[ast.Call]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                lock = node.func.value
                if node.func.attr in ("acquire", "release") and self._named(lock, self.names.lock):
                    calls.setdefault(self._text(lock), []).append(node)
        for lock_name, nodes in calls.items():
            self._add("guard", f"without {lock_name}.acquire()/release()", _no_call, *nodes)

    def _waits(self, node: ast.AST) -> bool:
        return any(isinstance(call, ast.Call) and self._called(call, self.names.wait) for call in ast.walk(node))

    def _guards(self, node: ast.expr) -> bool:
        """A lock, a call of something named like one, or a call that is given one: `holding(self._lock, deadline)`."""
        if self._called(node, self.names.lock):
            return True
        return isinstance(node, ast.Call) and any(self._named(argument, self.names.lock) for argument in node.args)

    @staticmethod
    def _named(node: ast.AST, pattern: str) -> bool:
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        return bool(name) and re.search(pattern, name) is not None

    def _called(self, node: ast.AST, pattern: str) -> bool:
        return self._named(node.func if isinstance(node, ast.Call) else node, pattern)


# Changing them: each function works on the copied node, in place ----------------------------------------------------


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _no_guard(node: ast.AST) -> None:
    """Nothing is held in the body. Where the body uses what the guard gives, it is held for a moment to be had."""
    assert isinstance(node, ast.withitem)
    null = _expression("__import__('contextlib').nullcontext()")
    assert isinstance(null, ast.Call)
    if node.optional_vars is not None:
        moment = _expression("(lambda guard: (guard.__enter__(), guard.__exit__(None, None, None))[0])()")
        assert isinstance(moment, ast.Call)
        moment.args = [node.context_expr]
        null.args = [moment]
    node.context_expr = ast.copy_location(null, node.context_expr)


def _no_call(node: ast.AST) -> None:
    """The call answers True (as an acquire does) and does nothing; its arguments are not evaluated."""
    assert isinstance(node, ast.Call)
    node.func, node.args, node.keywords = ast.copy_location(_expression("bool"), node.func), [_expression("1")], []


def _notify_one(node: ast.AST) -> None:
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Attribute)
    node.func.attr = "notify"


def _never(node: ast.AST) -> None:
    assert isinstance(node, ast.If)
    node.test = ast.copy_location(ast.Constant(False), node.test)


_ONCE = "_once_for_while"
_DROPPED = "_dropped_decorator"


def _once(node: ast.AST) -> None:
    setattr(node, _ONCE, True)


def _mark_decorator(node: ast.AST) -> None:
    setattr(node, _DROPPED, True)


class _Rewriter(ast.NodeTransformer):
    """Does what cannot be done in place."""

    def visit_While(self, node: ast.While) -> ast.stmt:
        self.generic_visit(node)
        if not hasattr(node, _ONCE):
            return node
        # A loop of one pass, and not an `if`, because there may be `break` and `continue` in the body.
        test = ast.If(test=node.test, body=node.body, orelse=[])
        once = ast.For(
            target=ast.Name("_once", ast.Store()),
            iter=ast.Tuple([ast.Constant(None)], ast.Load()),
            body=[ast.copy_location(test, node)],
            orelse=node.orelse,
        )
        return ast.copy_location(once, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        self.generic_visit(node)
        node.decorator_list = [d for d in node.decorator_list if not hasattr(d, _DROPPED)]
        return node
