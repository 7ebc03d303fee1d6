"""Argument checks: one sentence each, with the name, what was got and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype


def check_positive(name: str, value: Any) -> int:
    """Return `value` as an int, or raise `ValueError` unless it is a whole number above zero."""
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    return int(value)


def check_divides(name: str, value: Any, total_name: str, total: int) -> int:
    """Return `value` as an int, or raise `ValueError` unless it divides `total`."""
    value = check_positive(name, value)
    if total % value:
        raise ValueError(f"{name} must divide {total_name}={total}, got {value}.")
    return value


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return `value`, or raise `ValueError` unless it is one of `allowed`."""
    allowed = tuple(allowed)
    if value not in allowed:
        choices = ", ".join(map(str, allowed))
        raise ValueError(f"{name} must be one of {choices}; got {value!r}.")
    return value


def check_last_axis(name: str, x: Any, dim: int) -> None:
    """Raise `ValueError` unless the last axis of `x` has length `dim`."""
    if x.ndim == 0 or x.shape[-1] != dim:
        raise ValueError(f"{name} must have a last axis of length {dim}, got shape {x.shape}.")


def compute_dtype(dtype: Any, name: str = "x") -> Any:
    """The dtype to compute the array `name` in: fp32, and fp64 for fp64 where x64 is enabled.

    Callers cast the result back, so integers would be truncated in silence: they are refused.

    Raises:
        ValueError: `dtype` is not floating.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must have a floating dtype, got {dtype}.")
    return canonicalize_dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
