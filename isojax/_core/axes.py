"""The axes over which elements of an array share one statistic."""

from __future__ import annotations

import jax
from jaxtyping import Array

from isojax._core.checks import check_choice

SHARED = ("tensor", "token", "channel")


def to_rank(x: Array, ndim: int) -> Array:
    """`x` with leading axes of length one, up to `ndim`, to broadcast with arrays of that rank.

    JAX does so itself unless `jax_numpy_rank_promotion` is `raise`. A scalar stays a scalar.
    """
    return x if x.ndim == 0 else jax.lax.broadcast_to_rank(x, max(ndim, x.ndim))


def largest_divisor(total: int, most: int) -> int:
    """The largest divisor of `total` that is at most `most`."""
    return next(n for n in range(most, 0, -1) if total % n == 0)


def shared_axes(ndim: int, per: str) -> tuple[int, ...]:
    """The axes to reduce for one value per tensor, per token or per channel.

    A token is one vector along the last axis, a channel one coordinate of the last axis.

    Raises:
        ValueError: `per` is not "tensor", "token" or "channel".
    """
    check_choice("per", per, SHARED)
    axes = {"tensor": range(ndim), "token": range(max(ndim - 1, 0), ndim)}
    return tuple(axes.get(per, range(ndim - 1)))
