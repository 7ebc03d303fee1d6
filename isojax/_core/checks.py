"""Argument checks: one sentence each, with the name, what was got and what is allowed."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer
from jax.dtypes import canonicalize_dtype


def check_positive(name: str, value: Any) -> int:
    """Return `value` as an int, or raise `ValueError` unless it is a whole number above zero."""
    try:
        whole = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:  # a float, or a traced value
        whole = 0
    if whole < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    return whole


def check_divides(name: str, value: Any, total_name: str, total: int) -> int:
    """Return `value` as an int, or raise `ValueError` unless it divides `total`."""
    value = check_positive(name, value)
    if total % value:
        raise ValueError(f"{name} must divide {total_name}={total}, got {value}.")
    return value


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return the member of `allowed` equal to `value`, or raise `ValueError`; 3.0 is not 3.

    Where many are allowed, the message names the nearest.
    """
    allowed = tuple(allowed)
    loose = isinstance(value, float | bool)
    if not isinstance(value, Tracer):
        for one in allowed:
            if one == value and not (loose and type(one) is not type(value)):
                return one
    shown = nearest(value, allowed)
    choices = ", ".join(map(str, shown)) + (", ..." if len(shown) < len(allowed) else "")
    raise ValueError(f"{name} must be one of {choices}; got {value!r}.")


def nearest(value: Any, names: Iterable[Any], most: int = 12) -> list[Any]:
    """All of `names` if at most `most`, else those most like `value`, or the first three."""
    names = list(names)
    if len(names) <= most:
        return names
    near = difflib.get_close_matches(str(value), map(str, names), n=3, cutoff=0.5)
    return [name for name in names if str(name) in near] or names[:3]


def as_scalar(value: Any) -> Any:
    """A scalar of numpy or JAX as a plain number; anything else unchanged."""
    return value.item() if getattr(value, "shape", None) == () else value


def check_last_axis(name: str, x: Any, dim: int) -> None:
    """Raise `ValueError` unless the last axis of `x` has length `dim`."""
    if x.ndim == 0 or x.shape[-1] != dim:
        raise ValueError(f"{name} must have a last axis of length {dim}, got shape {x.shape}.")


def check_above_zero(name: str, value: Any) -> None:
    """Raise `ValueError` for a Python number that is not above zero and finite."""
    if isinstance(value, int | float) and not 0 < value < math.inf:
        raise ValueError(f"{name} must be above zero and finite, got {value!r}.")


def check_not_empty(name: str, x: Any) -> None:
    """Raise `ValueError` if `x` has no elements."""
    if 0 in x.shape:
        raise ValueError(f"{name} must not be empty, got shape {x.shape}.")


def compute_dtype(dtype: Any, name: str = "x") -> Any:
    """The dtype to compute the array `name` in: fp32, and fp64 for fp64 where x64 is enabled.

    Callers cast the result back, so integers would be truncated in silence: they are refused.

    Raises:
        ValueError: `dtype` is not floating.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must have a floating dtype, got {dtype}.")
    return canonicalize_dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
