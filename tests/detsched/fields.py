"""Makes every access to an instance field of given classes a visible operation.

Switch points at locks and sockets alone prove nothing about a program that forgot a lock: the forgotten access would
be invisible. Within `watched(Client, Pool)` each field of these classes is a data descriptor that announces READ or
WRITE, and stores the value where it was stored before (instance dictionary or slot). The fields of a class are found
by reading its code: every name that a method of the class or its bases assigns to an attribute, plus annotations and
slots; so that they are known before the first run and the same in every run.

* A field that holds a mutable container (list, dict, set, deque, ...) is announced as WRITE even when it is only
  read: what is done to the container follows in the same step. Not seen: an alias kept across a switch point, and the
  single steps of a loop over the container.
* A field that only `__init__` assigns is *constant*: no switch point, since reading it commutes with everything.
  Assignments are looked for in all of the packages that the classes come from, and the assumption is checked: another
  write ends the search with `ConstantWritten`. More constant names can be given, and names that are variable after
  all.

Objects of these classes also hash by their number in the run and not by their address, where they have no hash of
their own: a set of them is looped over in the same order in every run.

Left out: module globals, class attributes, fields of classes not named.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from .ops import READ, WRITE, Op, Shared
from .scheduler import Scheduler, active

_CONTAINERS: Final = (
    list, dict, set, deque, bytearray,
    weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary,
)  # fmt: skip
_MISSING: Final = object()
_CELLS: Final = "__detsched_cells__"


class ConstantWritten(RuntimeError):
    """A field that was taken for constant is not; name it in `variable`."""


class _Cells(dict[str, Shared]):
    """The fields of one object as things to operate on. `owner` tells a copied `__dict__` from the original's."""

    def __init__(self, owner: int, serial: int) -> None:
        super().__init__()
        self.owner = owner
        self.serial = serial


def _cell(scheduler: Scheduler, obj: Any, name: str, label: str) -> Shared:
    cells = _cells(scheduler, obj)
    cell = cells.get(name)
    if cell is None:
        cell = cells[name] = Shared(label)
    return cell


def _cells(scheduler: Scheduler, obj: Any) -> _Cells:
    store = getattr(obj, "__dict__", None)
    if store is None:
        return _cells_of_slotted(scheduler, obj)
    cells: _Cells | None = store.get(_CELLS)
    if cells is None or cells.owner != id(obj):
        cells = store[_CELLS] = _Cells(id(obj), scheduler.serial())
    return cells


def _stable_hash(obj: Any) -> int:
    known = getattr(obj, "__dict__", {}).get(_CELLS)
    if known is not None and known.owner == id(obj):
        return int(known.serial)
    scheduler = active()
    return object.__hash__(obj) if scheduler is None else _cells(scheduler, obj).serial


def _cells_of_slotted(scheduler: Scheduler, obj: Any) -> _Cells:
    # Kept with the run, by identity; an object that cannot be referred to weakly lives until the run is over.
    known = scheduler.slotted.get(id(obj))
    if known is not None and known[0]() is obj:
        cells: _Cells = known[1]
        return cells
    try:
        reference: Callable[[], Any] = weakref.ref(obj)
    except TypeError:
        reference = functools.partial(_identity, obj)
    cells = _Cells(id(obj), scheduler.serial())
    scheduler.slotted[id(obj)] = (reference, cells)
    return cells


def _identity(obj: Any) -> Any:
    return obj


class _Field:
    """Data descriptor in the place of one field of one class."""

    def __init__(self, cls: type, name: str, inherited: Any, constant: bool, containers: bool) -> None:
        self.name = name
        # Are the containers in it looked after? Not where it was given as constant.
        self.containers = containers
        self.label = f"{cls.__name__}.{name}"
        self.inherited = inherited
        # A slot keeps its value itself; else it lives in the instance dictionary.
        self.slot = inherited if isinstance(inherited, types.MemberDescriptorType) else None
        self.constant = constant

    def _load(self, obj: Any, cls: type | None) -> Any:
        if self.slot is not None:
            return self.slot.__get__(obj, cls)
        value = obj.__dict__.get(self.name, _MISSING)
        if value is not _MISSING:
            return value
        if self.inherited is _MISSING:
            raise AttributeError(f"{type(obj).__name__!r} object has no attribute {self.name!r}")
        bind = getattr(type(self.inherited), "__get__", None)
        return self.inherited if bind is None else bind(self.inherited, obj, cls)

    def _peek(self, obj: Any) -> Any:
        if self.slot is None:
            return obj.__dict__.get(self.name, _MISSING)
        try:
            return self.slot.__get__(obj, type(obj))
        except AttributeError:
            return _MISSING

    def __get__(self, obj: Any, cls: type | None = None) -> Any:
        if obj is None:
            if self.inherited is _MISSING:
                raise AttributeError(f"type object has no attribute {self.name!r}")
            return self.inherited
        scheduler = active()
        if scheduler is not None and scheduler.ending is None:
            me = scheduler.me()
            if me is not None:
                container = self.containers and isinstance(self._peek(obj), _CONTAINERS)
                if container or not self.constant:
                    op = Op(WRITE if container else READ, _cell(scheduler, obj, self.name, self.label))
                    scheduler.step(me, op)
                    # Another thread may have put a container there while this one waited for its turn.
                    if self.containers and op.kind is READ and isinstance(self._peek(obj), _CONTAINERS):
                        op.kind = WRITE
        return self._load(obj, cls)

    def _announce_write(self, obj: Any) -> None:
        scheduler = active()
        if scheduler is not None and scheduler.ending is None:
            me = scheduler.me()
            if me is not None:
                if self.constant:
                    if self._peek(obj) is not _MISSING:
                        scheduler.fail(me, ConstantWritten(f"{self.label} was taken for constant and is written again"))
                else:
                    scheduler.step(me, Op(WRITE, _cell(scheduler, obj, self.name, self.label)))

    def __set__(self, obj: Any, value: Any) -> None:
        self._announce_write(obj)
        if self.slot is not None:
            self.slot.__set__(obj, value)
        else:
            obj.__dict__[self.name] = value

    def __delete__(self, obj: Any) -> None:
        self._announce_write(obj)
        if self.slot is not None:
            self.slot.__delete__(obj)
        elif obj.__dict__.pop(self.name, _MISSING) is _MISSING:
            raise AttributeError(self.name)


class watched:
    """Context manager: the instance fields of these classes are switch points.

    `constant` names fields that are written once, when the object is made, and whose containers, if they hold any,
    nobody changes (that is taken on trust); `variable` fields that are written later, or that no method of the classes
    assigns.
    """

    def __init__(self, *classes: type, constant: Iterable[str] = (), variable: Iterable[str] = ()) -> None:
        self.classes = classes
        self.constant, self.variable = frozenset(constant), frozenset(variable)
        self._saved: list[tuple[type, str, Any]] = []

    def __enter__(self) -> watched:
        plan = [(cls, name, once) for cls in self.classes for name, once in sorted(self._fields(cls).items())]
        planned = [
            (cls, _Field(cls, name, _lookup(cls, name), once, name not in self.constant)) for cls, name, once in plan
        ]
        for cls, field in planned:
            self._saved.append((cls, field.name, cls.__dict__.get(field.name, _MISSING)))
            setattr(cls, field.name, field)
        for cls in self.classes:
            if _lookup(cls, "__hash__") is object.__dict__["__hash__"]:
                self._saved.append((cls, "__hash__", _MISSING))
                setattr(cls, "__hash__", _stable_hash)  # noqa: B010 - mypy takes an assignment for a method's
        return self

    def __exit__(self, *exc: object) -> None:
        while self._saved:
            cls, name, value = self._saved.pop()
            if value is _MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, value)

    def _fields(self, cls: type) -> dict[str, bool]:
        """Name of each field, and whether it is constant."""
        later = stored_later({base.__module__.partition(".")[0] for c in self.classes for base in c.__mro__[:-1]})
        fields = {name: once and name not in later for name, once in assigned_fields(cls).items()}
        fields.update(dict.fromkeys(self.variable, False))
        fields.update(dict.fromkeys(self.constant, True))
        return {name: once for name, once in fields.items() if _is_plain(_lookup(cls, name))}

    @property
    def names(self) -> list[str]:
        """The switch points, for reports."""
        return sorted({f"{c.__name__}.{n}" for c in self.classes for n, once in self._fields(c).items() if not once})


def assigned_fields(cls: type) -> dict[str, bool]:
    """Names that the methods of `cls` and its bases assign to attributes; True where only `__init__` does."""
    once: dict[str, bool] = {}
    for base in cls.__mro__[:-1]:
        for name in _slots(base):
            once.setdefault(name, True)
        for attribute, value in vars(base).items():
            for code in _codes(value):
                for name in _stores(code):
                    if not (name.startswith("__") and name.endswith("__")):
                        once[name] = once.get(name, True) and attribute == "__init__"
    return once


def stored_later(packages: set[str]) -> set[str]:
    """Names that any function of these packages but an `__init__` assigns to an attribute of whatever object."""
    names: set[str] = set()
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in packages:
            own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module_name]
            for value in own:
                members = vars(value).items() if isinstance(value, type) else [("", value)]
                for attribute, member in members:
                    if attribute != "__init__":
                        names |= {name for code in _codes(member) for name in _stores(code)}
    return names


def _slots(cls: type) -> list[str]:
    slots = cls.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    mangled = [f"_{cls.__name__.lstrip('_')}{n}" if n.startswith("__") and not n.endswith("__") else n for n in names]
    return [name for name in mangled if name not in ("__dict__", "__weakref__")]


def _codes(value: Any) -> Iterator[types.CodeType]:
    if isinstance(value, property):
        functions: list[Any] = [value.fget, value.fset, value.fdel]
    else:
        functions = [getattr(value, "__func__", value)]
    for function in functions:
        function = getattr(function, "__wrapped__", function)
        code = getattr(function, "__code__", None)
        if isinstance(code, types.CodeType):
            yield from _nested(code)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


@functools.cache
def _stores(code: types.CodeType) -> frozenset[str]:
    return frozenset(i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_ATTR", "DELETE_ATTR"))


def _lookup(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return _MISSING


def _is_plain(inherited: Any) -> bool:
    """A field, or a slot, or a default in the class; not a property or the like, which is code of its own."""
    if isinstance(inherited, (types.MemberDescriptorType, _Field)):
        return True
    return not hasattr(type(inherited), "__set__")
