"""Checks of finiteness: an error for concrete arrays, NaN for traced ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float


def check_finite(name: str, x: Float[Array, "..."]) -> bool:
    """Whether `x` is concrete, so that its elements could be checked.

    Raises:
        ValueError: `x` is concrete and holds NaN or infinity.
    """
    lost = jnp.sum(~jnp.isfinite(x))
    if isinstance(lost, Tracer):
        return False
    if lost:
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {lost} of {x.size} elements."
        )
    return True


def finite(name: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `x`, which must be finite; where it is traced and is not, return NaN everywhere.

    For the inputs of a fit: one bad element is an error, never a plausible result.

    Raises:
        ValueError: `x` is not traced and holds NaN or infinity.
    """
    return x if check_finite(name, x) else unless(jnp.all(jnp.isfinite(x)), x)


def unless(good: Bool[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` if `good`, else NaN everywhere."""
    return jnp.where(good, x, jnp.nan)


def power_of_two(size: Array) -> Array:
    """The largest power of two up to each magnitude, whose inverse is normal too; 1 for zero.

    Division by it is exact, and the squares of the quotients stay in range. No gradient.
    """
    size = jax.lax.stop_gradient(size)
    power = size / jnp.where(size == 0, 1, 2 * jnp.frexp(size)[0])
    return jnp.where(size == 0, 1, jnp.minimum(power, 1 / jnp.finfo(size.dtype).tiny))
