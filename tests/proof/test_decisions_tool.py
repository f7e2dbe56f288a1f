"""The tool that changes decisions, on small sources: it finds each kind, changes just that, and leaves the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.proof.deciding import ROOT, Fate, files_asked, kind_of, mutants_of_module, path_of, still_open
from tests.proof.decisions import decision_mutants, enums_of
from tests.proof.mutants import Mutant

ENUM = "import enum\nclass Life(enum.Enum):\n    OPEN = 1\n    CLOSING = 2\n    CLOSED = 3\n"


def mutants(body: str) -> list[Mutant]:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return list(decision_mutants(f"def f(self, a, b):\n{lines}", "m", enums_of([ENUM])))


def changed(mutant: Mutant) -> str:
    added = [line[1:].strip() for line in mutant.diff().splitlines() if line.startswith("+") and line[1:2] == " "]
    return " ".join(added)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a < b", {"`<=` for `<` in `a < b`": "return a <= b"}),
        ("return a <= b", {"`<` for `<=` in `a <= b`": "return a < b"}),
        ("return a > b", {"`>=` for `>` in `a > b`": "return a >= b"}),
        ("return a >= b", {"`>` for `>=` in `a >= b`": "return a > b"}),
        ("return a == b", {"`!=` for `==` in `a == b`": "return a != b"}),
        ("return a != b", {"`==` for `!=` in `a != b`": "return a == b"}),
        ("return a is b", {"`is not` for `is` in `a is b`": "return a is not b"}),
        ("return a is not b", {"`is` for `is not` in `a is not b`": "return a is b"}),
        ("return a in b", {"`not in` for `in` in `a in b`": "return a not in b"}),
        ("return a not in b", {"`in` for `not in` in `a not in b`": "return a in b"}),
        ("return a + 7", {"8 for 7": "return a + 8", "6 for 7": "return a + 6"}),
        ("return 1.5", {"2.5 for 1.5": "return 2.5", "0.5 for 1.5": "return 0.5"}),
        ("return True", {"False for True": "return False"}),
        ("return False", {"True for False": "return True"}),
        ("return a and b", {"`or` for `and` in `a and b`": "return a or b"}),
        ("return a or b", {"`and` for `or` in `a or b`": "return a and b"}),
        ("return not a", {"without `not` in `not a`": "return not not a"}),
        ("return Life.OPEN", {"CLOSING for Life.OPEN": "return Life.CLOSING"}),
        ("return Life.CLOSED", {"OPEN for Life.CLOSED": "return Life.OPEN"}),
        ("a.wake()", {"without `a.wake()`": "None"}),
        ("return min(a, b)", {"max for min in `min(a, b)`": "return max(a, b)"}),
        (
            "a.append(b)",
            {"without `a.append(b)`": "None", "appendleft for append in `a.append(b)`": "a.appendleft(b)"},
        ),
        ("return a.popleft()", {"pop for popleft in `a.popleft()`": "return a.pop()"}),
        ("return a[0]", {"last for `a[0]`": "return a[-1]"}),
        ("return a[-1]", {"first for `a[-1]`": "return a[0]"}),
        ("a += b", {"`-=` in `a += b`": "a -= b"}),
        ("a -= b", {"`+=` in `a -= b`": "a += b"}),
        ("return a if b else self", {"`if True` for `if b`": "return a if True else self",
                                     "`if False` for `if b`": "return a if False else self"}),
        ("return [x for x in a if b]", {"`for ... if True` for `if b`": "return [x for x in a if True]",
                                        "`for ... if False` for `if b`": "return [x for x in a if False]"}),
        ("while a: b", {"`while False` for `while a`": "while False:"}),
    ],
)  # fmt: skip
def test_each_kind_of_decision_is_found_and_changed(body: str, expected: dict[str, str]) -> None:
    assert {mutant.description: changed(mutant) for mutant in mutants(body)} == expected


def test_a_branch_is_taken_always_and_never_and_loses_its_else() -> None:
    found = {m.description: m.source for m in mutants("if a:\n    return b\nelse:\n    return self")}
    assert list(found) == ["`if True` for `if a`", "`if False` for `if a`", "without the `else` of `if a`"]
    assert "if True:" in found["`if True` for `if a`"]
    assert "if False:" in found["`if False` for `if a`"]
    assert "else" not in found["without the `else` of `if a`"]


@pytest.mark.parametrize(
    "body",
    [
        '"""A docstring, 7."""',
        "assert a < b",
        "note(1, 'a line of %s', a < b)",
        "self.log.debug('%s', not a)",
        "raise ValueError(f'{a} is less than 7')",
        "while True: break",
        "if TYPE_CHECKING: a = 7",
        "__slots__ = ('a', 7)",
        "a: int",
        "super().__init__(a)",
        "return f'{7}'",
    ],
)
def test_what_is_shown_or_typed_or_asserted_is_no_decision(body: str) -> None:
    assert mutants(body) == []


def test_what_a_class_shows_of_itself_is_no_decision() -> None:
    source = "class A:\n    def __repr__(self):\n        return 7 if self.a else 8\nclass E(Enum):\n    A = 1\n"
    assert list(decision_mutants(source, "m", {})) == []


def test_two_alike_have_names_of_their_own_and_each_changes_its_own_place() -> None:
    first, second = mutants("return (a < b, a < b)")
    assert [first.description, second.description] == ["`<=` for `<` in `a < b`", "`<=` for `<` in `a < b` #2"]
    assert (changed(first), changed(second)) == ("return (a <= b, a < b)", "return (a < b, a <= b)")


def test_every_mutant_of_what_decides_compiles() -> None:
    for module in ("threadmail.pool", "threadmail._protocol.transaction"):
        found = mutants_of_module(module)
        assert len(found) > 100
        assert len({mutant.name for mutant in found}) == len(found)
        for mutant in found:
            compile(mutant.tree, "mutant", "exec")


def test_the_tests_asked_about_a_module_are_there() -> None:
    assert path_of("threadmail.retry").name == "retry.py"
    assert ROOT / "tests" / "test_retry.py" in files_asked("threadmail.retry")


def test_what_nobody_noticed_and_nobody_argues_for_is_open() -> None:
    fates = {"m:f: noticed": Fate("tests/test_m.py::test_a"), "m:f: open": Fate(None, "survived")}
    assert list(still_open(fates)) == ["m:f: open"]
    assert kind_of("tests/proof/test_exhaustive.py::test_no_schedule_breaks_it[pool, 2x1]") == "explorer"
    assert kind_of("tests/test_pool.py::test_x") == "dialogue by sockets"


HUNT = """
import sys
from stress import mutants
from tests.proof import deciding
mutants._import_what_tests_need()
import os
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
module = "threadmail.receipt"
found = {m.name: m for m in deciding.mutants_of_module(module)}
real = found["threadmail.receipt:Reply.positive: `<` for `<=` in `200 <= self.code <= 299` #2"]
tests = ["tests/test_receipt.py::test_refused_and_deferred_recipients_are_told_apart"]
import dataclasses
control = dataclasses.replace(real, _change=lambda tree: tree)
hang = dataclasses.replace(real, _change=lambda tree: __import__("ast").parse("while True: pass"))
broken = dataclasses.replace(real, _change=lambda tree: __import__("ast").parse("import nothing_there"))
for mutant, limit in ((control, 60.0), (hang, 1.0), (broken, 60.0)):
    [hunt] = mutants.hunt_all(iter([(mutant, tests)]), 1, limit)
    print(hunt.fate.how)
"""


def test_a_hunt_tells_the_real_module_from_one_that_hangs_and_one_that_cannot_be_imported() -> None:
    """The control: with nothing changed the same tests pass, in the same process."""
    done = subprocess.run([sys.executable, "-c", HUNT], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.split() == ["survived", "hung", "import"], done.stderr
