"""AWQ: weight rows scaled by a power of the magnitude of their inputs, found by search.

Lin et al. 2024 (arXiv 2306.00978): x @ w = (x / s) @ (s w) with s_j = mean|x_j|^alpha, and alpha
from a grid by the output error when only s w is rounded. As in the published code, alpha goes in
steps of 1/20 from 0, and s is scaled to sqrt(max s min s) = 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_last_axis, check_positive, compute_dtype
from isojax._core.finite import finite, unless
from isojax.learn.moments import second_moment
from isojax.quantizers import Quantizer


def awq_scale(
    x: Float[Array, "*tokens i"],
    weight: Float[Array, "i o"],
    quantizer: Quantizer,
    *,
    steps: int = 20,
) -> Float[Array, " i"]:
    """The scale s of the alpha in 0, 1 / steps, ..., 1 - 1 / steps with the least output error.

    The error is E|x (w_hat - w)|^2 with s w_hat the rounding of s w, from the second moment of x.
    A channel that is zero on all of x has s_j = 1.

    Args:
        x: calibration vectors.
        weight: all weights that read x, concatenated.
        quantizer: of the rows of `weight.T`, that act along the input.
        steps: values of alpha to try.

    Returns:
        s in fp32, or fp64 for fp64.

    Raises:
        ValueError: an input is not finite (where traced, s is NaN); `weight` has other rows than x
            has channels; or `steps` is not a whole number of at least 1.
    """
    check_last_axis("x", x, weight.shape[0])
    grid = jnp.arange(check_positive("steps", steps)) / steps
    x = finite("x", x.astype(compute_dtype(x.dtype)).reshape(-1, x.shape[-1]))
    weight = finite("weight", weight)
    w, moment, size = weight.astype(x.dtype), second_moment(x), jnp.mean(jnp.abs(x), 0)
    live = size > 0
    known = jnp.all(jnp.isfinite(size)) & jnp.all(jnp.isfinite(w))

    def scale(alpha: Array) -> Array:
        s = jnp.where(live, jnp.maximum(jnp.where(live, size, 1) ** alpha, 1e-4), 1)
        high, low = jnp.max(s, where=live, initial=0), jnp.min(s, where=live, initial=jnp.inf)
        return jnp.where(live, s / jnp.sqrt(high * low), 1)

    def error(alpha: Array) -> Array:
        s = scale(alpha)[:, None]
        lost = quantizer.roundtrip((w * s).T).T / s - w
        return jnp.sum(lost * jnp.matmul(moment, lost, precision="highest"))

    return unless(known, scale(grid[jnp.argmin(jax.lax.map(error, grid.astype(x.dtype)))]))
