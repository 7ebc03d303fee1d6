"""Granularity: which elements of an array share one scale.

| granularity | one scale for |
|---|---|
| `tensor` | all elements |
| `token` | each vector along the last axis |
| `channel` | each coordinate of the last axis |
| `group` | each run of `group` consecutive elements along the last axis |
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from isojax._core.axes import SHARED, shared_axes
from isojax._core.checks import check_choice, check_divides, check_positive

GRANULARITIES = (*SHARED, "group")
NORMALIZE = ("none", "rms", "norm", "peak")


def check_granularity(granularity: str, group: int) -> None:
    """Raise `ValueError` unless the name is known, and `group` is nonzero only where it is used."""
    check_choice("granularity", granularity, GRANULARITIES)
    if granularity == "group":
        check_positive("group", group)
    elif group:
        raise ValueError(f"group must be 0 for granularity {granularity!r}, got {group!r}.")


def split(values: Array, granularity: str, group: int) -> Array:
    """`values` in a shape that broadcasts against scales: groups `[..., d/g, g]`, or unchanged.

    Raises:
        ValueError: `group` does not divide the last axis, or no elements share a scale.
    """
    if granularity == "group":
        dim = values.shape[-1]
        check_divides("group", group, "the last axis", dim)
        values = values.reshape(*values.shape[:-1], dim // group, group)
    if any(values.shape[a] == 0 for a in scale_axes(values.ndim, granularity)):
        raise ValueError(f"y must have elements that share a scale, got shape {values.shape}.")
    return values


def scale_axes(ndim: int, granularity: str) -> tuple[int, ...]:
    """The axes of `split(values)`, with `ndim` axes, that share one scale."""
    return shared_axes(ndim, "token" if granularity == "group" else granularity)


def shared_scale(v: Array, normalize: str, granularity: str) -> Array | None:
    """The `rms`, `norm` or `peak` of the split `v` that share a scale; None for `none`."""
    axes = scale_axes(v.ndim, granularity)
    if normalize == "none":
        return None
    if normalize == "peak":
        return jnp.max(jnp.abs(v), axes, keepdims=True)
    reduce = jnp.mean if normalize == "rms" else jnp.sum
    return root(reduce(jnp.square(v), axes, keepdims=True))


def root(square: Array) -> Array:
    """The square root, with a gradient of zero at zero."""
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def divide(v: Array, scale: Array | None) -> Array:
    """`v / scale`, and `v` where the scale is zero or None."""
    return v if scale is None else v / jnp.where(scale == 0, 1, scale)
