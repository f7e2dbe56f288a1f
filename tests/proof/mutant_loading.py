"""Puts a mutant in the place of the real module, in a fresh import of its package, and asks who notices.

A mutant is compiled from its syntax tree, so that tracebacks keep the line numbers of the source. The real package is
put back afterwards, untouched: other tests never meet a mutant.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from .mutants import Mutant


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads the mutant as if it were the source file."""

    def __init__(self, mutant: Mutant, path: str) -> None:
        super().__init__(mutant.module, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> types.CodeType:
        code: types.CodeType = compile(self._mutant.tree, self.path, "exec")
        return code


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the one mutated module; all others are left to the usual finders."""

    def __init__(self, mutant: Mutant, path: str) -> None:
        self._name, self._path = mutant.module, path
        self._loader = _Loader(mutant, path)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self._loader)


def put_in_place(mutant: Mutant, path: str) -> None:
    """Let the mutant be imported in the place of its module, for good: for a process that has not imported it yet.

    Args:
        path: where the real module's source is.
    """
    sys.meta_path.insert(0, _Finder(mutant, path))


@contextmanager
def installed(mutant: Mutant, package: str) -> Iterator[types.ModuleType]:
    """A fresh import of `package` with the mutant in the place of its module; yields the package.

    Within it, imports of the package and its modules give the fresh ones. Objects of the real package do not mix with
    them: a scenario must take its classes from the package it is given.
    """
    spec = importlib.util.find_spec(mutant.module)
    if spec is None or spec.origin is None:
        raise ImportError(f"no source for {mutant.module}")
    finder = _Finder(mutant, spec.origin)
    saved = _forget(package)
    sys.meta_path.insert(0, finder)
    try:
        root = importlib.import_module(package)
        for name in getattr(root, "__all__", ()):
            getattr(root, name)  # one that imports its modules late would import them from the real package, afterwards
        importlib.import_module(mutant.module)
        yield root
    finally:
        sys.meta_path.remove(finder)
        _forget(package)
        sys.modules.update(saved)


def _forget(package: str) -> dict[str, types.ModuleType]:
    names = [name for name in sys.modules if name == package or name.startswith(package + ".")]
    return {name: sys.modules.pop(name) for name in names}


#: A named check of a package: what is wrong with it (a schedule and its violations, say), or None.
Probe = tuple[str, Callable[[types.ModuleType], "str | None"]]


def killed_by(mutant: Mutant, package: str, probes: Iterable[Probe]) -> str | None:
    """Which probe notices the mutant first, and how; None if it survives them all.

    A probe that raises has noticed it too: a program that cannot be explored any more is not the one that was proved.
    """
    with ExitStack() as stack:
        try:
            root = stack.enter_context(installed(mutant, package))
        except Exception as error:  # noqa: BLE001 - a module that cannot be imported is noticed by anybody
            return f"import: {type(error).__name__}: {error}"
        for name, probe in probes:
            try:
                found = probe(root)
            except Exception as error:  # noqa: BLE001 - whatever it is, the mutant caused it
                found = f"{type(error).__name__}: {error}"
            if found is not None:
                return f"{name}: {found}"
    return None
