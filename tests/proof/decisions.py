"""Changes the decisions of a module, one at a time, mechanically.

Beside mutants.py, which takes the locking apart: this tool walks over the real source and yields one mutant for each
decision in it, so that new code is covered without anyone remembering. What counts as a decision:

* compare: `<` for `<=`, `==` for `!=`, `is` for `is not`, `in` for `not in`, and so on, both ways;
* constant: each number one more, and one less;
* boolean: `and` for `or`, a `not` taken away, True for False;
* branch: each `if`, each `x if c else y`, each condition of a comprehension taken for true, and for false; each `while`
  for false; each `else` left out;
* state: a member of an enum replaced by its neighbour;
* call: a call that stands alone left out; `min` for `max`, `append` for `appendleft`, `pop` for `popleft`;
* place: first for last (`[0]`, `[-1]`), `+=` for `-=`.

Not decisions: what is logged or shown, what only types need, asserts. Which tests notice is asked by stress/mutants.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator

from .mutants import Mutant, Site, mutants_at

#: Functions that decide nothing.
_SHOWN = re.compile(r"^__(repr|str|reduce|init_subclass|getattr|dir)__$")
#: Calls whose arguments and whose absence change only what somebody reads.
_LOGS = re.compile(r"^(note|log|debug|info|warning|error|exception|critical|audit|cast|TypeVar|NewType)$")

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_SIGNS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
_SWAPPED = {
    "min": "max", "max": "min", "append": "appendleft", "appendleft": "append", "pop": "popleft", "popleft": "pop",
    "any": "all", "all": "any",
}  # fmt: skip


def decision_mutants(source: str, module: str, enums: dict[str, list[str]]) -> Iterator[Mutant]:
    """All mutants of the decisions of one module, in the order of its lines.

    Args:
        enums: the members of each enum by its name, see `enums_of`.
    """
    tree = ast.parse(source)
    finder = _Decisions(source, enums)
    finder.visit(tree)
    yield from mutants_at(finder.sites, tree, module)


def enums_of(sources: Iterable[str]) -> dict[str, list[str]]:
    """The enums that these modules define, with their members in order."""
    found: dict[str, list[str]] = {}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases):
                assigned = [statement for statement in node.body if isinstance(statement, ast.Assign)]
                found[node.name] = [t.id for s in assigned for t in s.targets if isinstance(t, ast.Name)]
    return found


class _Decisions(ast.NodeVisitor):
    """Finds the sites. A decision inside of what is skipped is not looked at."""

    def __init__(self, source: str, enums: dict[str, list[str]]) -> None:
        self.sites: list[Site] = []
        self._source, self._enums = source, enums
        self._path: list[str] = []
        self._counts: dict[tuple[str, str], int] = {}

    def _text(self, node: ast.AST) -> str:
        return " ".join((ast.get_source_segment(self._source, node) or "").split())

    def _add(self, kind: str, description: str, change: Callable[[ast.AST], None], node: ast.AST) -> None:
        function = ".".join(self._path) or "<module>"
        number = self._counts[function, description] = self._counts.get((function, description), 0) + 1
        if number > 1:
            description += f" #{number}"
        line, column = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
        self.sites.append(Site(kind, description, function, line, column, [node], change))

    # Where to look ----------------------------------------------------------------------------------------------------

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if any("Enum" in ast.unparse(base) or "Protocol" in ast.unparse(base) for base in node.bases):
            return
        self._path.append(node.name)
        self._visit_all(node.body)
        self._path.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if _SHOWN.match(node.name):
            return
        self._path.append(node.name)
        self._visit_all([*node.args.defaults, *(default for default in node.args.kw_defaults if default is not None)])
        self._visit_all(node.body)
        self._path.pop()

    def _visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_Raise(self, node: ast.Raise) -> None:
        # What is said is not what is decided; what is raised is left to who catches it.
        for keyword in node.exc.keywords if isinstance(node.exc, ast.Call) else ():
            self.visit(keyword.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(target, ast.Name) and target.id.startswith("__") for target in node.targets):
            self.generic_visit(node)

    # What is found ----------------------------------------------------------------------------------------------------

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, operator in enumerate(node.ops):
            other = _COMPARED[type(operator)]
            what = f"`{_SIGNS[other]}` for `{_SIGNS[type(operator)]}` in `{self._text(node)}`"

            def change(copied: ast.AST, index: int = index, other: type[ast.cmpop] = other) -> None:
                assert isinstance(copied, ast.Compare)
                copied.ops[index] = other()

            self._add("compare", what, change, node)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if value is True or value is False:
            self._add("boolean", f"{not value} for {value}", _constant(not value), node)
        elif isinstance(value, (int, float)):
            for step in (1, -1):
                self._add("constant", f"{value + step:g} for {value:g}", _constant(value + step), node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        is_and = isinstance(node.op, ast.And)
        what = f"`{'or' if is_and else 'and'}` for `{'and' if is_and else 'or'}` in `{self._text(node)}`"

        def change(copied: ast.AST) -> None:
            assert isinstance(copied, ast.BoolOp)
            copied.op = ast.Or() if is_and else ast.And()

        self._add("boolean", what, change, node)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):

            def change(copied: ast.AST) -> None:
                assert isinstance(copied, ast.UnaryOp)
                copied.op = ast.Not()
                copied.operand = ast.copy_location(ast.UnaryOp(ast.Not(), copied.operand), copied)

            self._add("boolean", f"without `not` in `{self._text(node)}`", change, node)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            return
        self._branches(node, self._text(node.test))
        if node.orelse and not isinstance(node.orelse[0], ast.If):
            self._add("branch", f"without the `else` of `if {self._text(node.test)}`", _no_else, node)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._branches(node, self._text(node.test))
        self.generic_visit(node)

    def _branches(self, node: ast.AST, test: str) -> None:
        for value in (True, False):
            self._add("branch", f"`if {value}` for `if {test}`", _test_is(value), node)

    def visit_While(self, node: ast.While) -> None:
        if isinstance(node.test, ast.Constant):
            self._visit_all([*node.body, *node.orelse])
            return
        self._add("branch", f"`while False` for `while {self._text(node.test)}`", _test_is(False), node)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for index, test in enumerate(node.ifs):
            for value in (True, False):

                def change(copied: ast.AST, index: int = index, value: bool = value) -> None:
                    assert isinstance(copied, ast.comprehension)
                    copied.ifs[index] = ast.copy_location(ast.Constant(value), copied.ifs[index])

                # A comprehension has no place of its own.
                self._add("branch", f"`for ... if {value}` for `if {self._text(test)}`", change, node)
                self.sites[-1].line, self.sites[-1].column = test.lineno, test.col_offset
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        members = self._enums.get(node.value.id, []) if isinstance(node.value, ast.Name) else []
        if node.attr in members and len(members) > 1:
            other = members[(members.index(node.attr) + 1) % len(members)]
            self._add("state", f"{other} for {self._text(node)}", _attribute(other), node)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        call = node.value
        if isinstance(call, ast.Constant):
            return  # a docstring
        if isinstance(call, ast.Call):
            if _LOGS.match(_name(call.func)):
                return
            if "super().__init__" not in ast.unparse(call.func):
                self._add("call", f"without `{self._text(call)}`", _nothing, node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if _LOGS.match(name):
            return
        if name in _SWAPPED:
            self._add("call", f"{_SWAPPED[name]} for {name} in `{self._text(node)}`", _renamed(_SWAPPED[name]), node)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        index = node.slice
        first = isinstance(index, ast.Constant) and index.value == 0
        last = isinstance(index, ast.UnaryOp) and isinstance(index.operand, ast.Constant) and index.operand.value == 1
        if first or last:
            what = f"{'last' if first else 'first'} for `{self._text(node)}`"
            self._add("place", what, _at(-1 if first else 0), node)
            self.visit(node.value)
        else:
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.op, (ast.Add, ast.Sub)):
            plus = isinstance(node.op, ast.Add)

            def change(copied: ast.AST) -> None:
                assert isinstance(copied, ast.AugAssign)
                copied.op = ast.Sub() if plus else ast.Add()

            self._add("place", f"`{'-' if plus else '+'}=` in `{self._text(node)}`", change, node)
        self.generic_visit(node)


def _name(function: ast.AST) -> str:
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


# The changes: each function works on the copied node, in place --------------------------------------------------------


def _constant(value: object) -> Callable[[ast.AST], None]:
    def change(node: ast.AST) -> None:
        assert isinstance(node, ast.Constant)
        node.value = value  # type: ignore[assignment]

    return change


def _test_is(value: bool) -> Callable[[ast.AST], None]:
    def change(node: ast.AST) -> None:
        assert isinstance(node, (ast.If, ast.IfExp, ast.While))
        node.test = ast.copy_location(ast.Constant(value), node.test)

    return change


def _no_else(node: ast.AST) -> None:
    assert isinstance(node, ast.If)
    node.orelse = []


def _attribute(name: str) -> Callable[[ast.AST], None]:
    def change(node: ast.AST) -> None:
        assert isinstance(node, ast.Attribute)
        node.attr = name

    return change


def _nothing(node: ast.AST) -> None:
    assert isinstance(node, ast.Expr)
    node.value = ast.copy_location(ast.Constant(None), node.value)


def _renamed(name: str) -> Callable[[ast.AST], None]:
    def change(node: ast.AST) -> None:
        assert isinstance(node, ast.Call)
        if isinstance(node.func, ast.Attribute):
            node.func.attr = name
        else:
            assert isinstance(node.func, ast.Name)
            node.func.id = name

    return change


def _at(index: int) -> Callable[[ast.AST], None]:
    def change(node: ast.AST) -> None:
        assert isinstance(node, ast.Subscript)
        node.slice = ast.copy_location(ast.Constant(index), node.slice)

    return change
