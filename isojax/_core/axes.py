"""Which numbers of an array share one statistic."""

from __future__ import annotations

import jax
from jaxtyping import Array

from isojax._core.checks import check_choice

SHARED = ("tensor", "token", "channel")


def to_rank(x: Array, ndim: int) -> Array:
    """`x` with axes of length one in front, up to `ndim`, to broadcast with arrays of so many.

    What JAX does by itself unless `jax_numpy_rank_promotion` is `raise`. A scalar stays one.
    """
    return x if x.ndim == 0 else jax.lax.broadcast_to_rank(x, max(ndim, x.ndim))


def largest_divisor(total: int, most: int) -> int:
    """The largest divisor of `total` that is at most `most`."""
    return next(n for n in range(most, 0, -1) if total % n == 0)


def shared_axes(ndim: int, per: str) -> tuple[int, ...]:
    """The axes to reduce so that one number is left per tensor, per token or per channel.

    A token is one vector along the last axis, a channel one coordinate of the last axis.

    Raises:
        ValueError: `per` is not "tensor", "token" or "channel".
    """
    check_choice("per", per, SHARED)
    axes = {"tensor": range(ndim), "token": range(max(ndim - 1, 0), ndim)}
    return tuple(axes.get(per, range(ndim - 1)))
