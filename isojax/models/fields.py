"""Checks of single fields that a file states."""

from __future__ import annotations

from typing import Any

LARGEST = 2**31 - 1  # of sizes and counts; far above any real one
_LEAST_FLOAT, _LARGEST_FLOAT = 1e-30, 1e30  # products of a few of these fit fp64

_LONGEST_NAME = 120


def is_positive(value: Any) -> bool:
    """Whether this is a number above zero in the range of fp32."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and bool(_LEAST_FLOAT < value < _LARGEST_FLOAT)


def require(source: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse a field with a value that this decoder does not support."""
    if value not in allowed:
        raise ValueError(f"{source}: {name}={short(value)} is not supported, only {allowed[0]!r}.")


def printed(name: str) -> str:
    """A name from a file, for a message: unchanged, or as a literal where it is not printable."""
    return name if name.isprintable() and len(name) <= _LONGEST_NAME else short(name)


def short(value: Any, limit: int = 80) -> str:
    """A value for a message, on one line of at most `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
