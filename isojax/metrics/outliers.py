"""Errors of the largest elements and of the others: outliers and the noise floor."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from isojax._core.quantile import quantile
from isojax.metrics.error import pair


def quantile_threshold(x: Float[Array, "*batch d"], q: Any, pooled: bool = True) -> Array:
    """The `q`-quantile of |x| with linear interpolation, as in `numpy.quantile`.

    Args:
        x: array of vectors.
        q: in [0, 1]; a Python number is placed exactly, a traced one to within fp32.
        pooled: one threshold for all elements, else one per coordinate of the last axis.

    Returns:
        A scalar, or `[d]` if not pooled; either broadcasts against `x`.
    """
    axes = None if pooled else range(x.ndim - 1)
    return quantile(jnp.abs(x), q, axes)


def outlier_mse(
    x: Float[Array, "..."], x_hat: Float[Array, "..."], threshold: Any
) -> Float[Array, ""]:
    """Mean squared error over the elements with |x| >= `threshold`, in squared units of `x`.

    The tradeoff's outliers are the top 1%: `threshold = quantile_threshold(x, 0.99)`. 0 if there
    are none.
    """
    x, x_hat = pair(x, x_hat)
    return masked_mse(jnp.square(x_hat - x), jnp.abs(x) >= threshold)


def noise_floor_mse(
    x: Float[Array, "..."], x_hat: Float[Array, "..."], threshold: Any
) -> Float[Array, ""]:
    """Mean squared error over the elements with |x| <= `threshold`, in squared units of `x`.

    The tradeoff's noise floor is the bottom 90%: `threshold = quantile_threshold(x, 0.90)`. 0 if
    there are none.
    """
    x, x_hat = pair(x, x_hat)
    return masked_mse(jnp.square(x_hat - x), jnp.abs(x) <= threshold)


def masked_mse(square: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Mean of `square` where `mask` holds; 0 if it holds nowhere."""
    count = jnp.maximum(jnp.sum(mask), 1).astype(square.dtype)
    return jnp.sum(jnp.where(mask, square, 0)) / count
