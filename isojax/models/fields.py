"""Checks of single fields that a file states."""

from __future__ import annotations

from typing import Any

LARGEST = 2**31 - 1  # sizes and counts; none comes near
_LEAST_FLOAT, _LARGEST_FLOAT = 1e-30, 1e30  # products of a few of them are numbers of fp64

_LONGEST_NAME = 120


def is_positive(value: Any) -> bool:
    """Whether this is a number above zero that fp32 holds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and bool(_LEAST_FLOAT < value < _LARGEST_FLOAT)


def require(source: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse a field whose value changes the model in a way that is not there."""
    if value not in allowed:
        raise ValueError(f"{source}: {name}={short(value)} is not supported, only {allowed[0]!r}.")


def printed(name: str) -> str:
    """A name that a file gives, for a message: as it is, or as a literal where that is no line."""
    return name if name.isprintable() and len(name) <= _LONGEST_NAME else short(name)


def short(value: Any, limit: int = 80) -> str:
    """A value for a message, on one line and no longer than that."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
