"""What callers give as a number.

Owns the check of settings and durations. Guarantees: what is no number is named where it is given, with its kind and
never its value, and not met as a TypeError somewhere inside, perhaps on a thread of ours. A bool is no number here, for
`workers=True` is a slip; nan is none either, for it is neither more nor less than any other.
"""

from __future__ import annotations

from numbers import Integral, Real

from ..errors import InvalidConfig


def require_number(name: str, value: object, *, unit: str = "") -> None:
    """Raise InvalidConfig unless `value` is a number, of `unit` (" of seconds")."""
    if isinstance(value, bool) or not isinstance(value, (float, int, Real)):
        raise InvalidConfig(f"{name} is no number{unit} but a {type(value).__name__}")
    if value != value:
        raise InvalidConfig(f"{name} must be a number{unit}, not nan")
    try:
        float(value)
    except OverflowError:
        raise InvalidConfig(f"{name} is too large a number{unit}") from None


def require_whole(name: str, value: object) -> None:
    """Raise InvalidConfig unless `value` is a whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):
        raise InvalidConfig(f"{name} is no int but a {type(value).__name__}")
