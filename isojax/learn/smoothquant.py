"""SmoothQuant: moves part of an activation's range into the weights that read it.

Xiao et al. 2023 (arXiv 2211.10438): x @ w = (x / s) @ (s w) for any positive s, one factor per
input channel. Outlier channels of x become smaller and their weights larger; the division merges
into the weights that write x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.axes import to_rank
from isojax._core.checks import check_last_axis, compute_dtype
from isojax._core.finite import finite


def smooth_scale(
    x_absmax: Float[Array, "*batch i"],
    weights: Sequence[Float[Array, "*batch i _"]],
    alpha: float | Float[Array, ""] = 0.5,
) -> Float[Array, "*batch i"]:
    """s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), equation 4; 1 where either maximum is zero.

    At alpha 0.5, channel j of x / s and row j of s w both reach sqrt(max|x_j| max|w_j|).

    Args:
        x_absmax: the largest magnitude per channel on calibration data.
        weights: all weights that read x, [in, out] each.
        alpha: the part of the range to move, 0 to 1; traced.

    Returns:
        s in fp32, or fp64 for fp64; NaN where a maximum is traced and not finite.

    Raises:
        ValueError: `alpha` is a Python number out of its range, there are no weights, one has
            other rows than x has channels, or a maximum is not finite.
    """
    if isinstance(alpha, int | float) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha!r}.")
    if not weights:
        raise ValueError("weights must be at least one array, got none.")
    for w in weights:
        if w.shape[:-1] != x_absmax.shape:
            raise ValueError(f"weights must have shape {(*x_absmax.shape, 'out')}, got {w.shape}.")
    x_most = finite("x_absmax", x_absmax.astype(compute_dtype(x_absmax.dtype, "x_absmax")))
    w_most = jnp.max(jnp.stack([jnp.max(jnp.abs(w), -1) for w in weights]), 0).astype(x_most.dtype)
    w_most = finite("weights", w_most)
    scale = x_most**alpha / w_most ** (1 - alpha)
    return jnp.where((x_most == 0) | (w_most == 0), 1, scale)


def smooth(scale: Float[Array, "*batch i"], written: Any, read: Any) -> tuple[Any, Any]:
    """`written` divided by `scale` and `read` multiplied by it; products stay the same.

    Computed in fp32, in the dtype of each array.

    Args:
        scale: s of `smooth_scale`.
        written: a pytree of arrays that end in an axis of channels, [..., in]: x itself, the scale
            of the norm in front, or kernel and bias of up_proj in front of down_proj.
        read: a pytree of weights [..., in, out].

    Raises:
        ValueError: an array has another number of channels.

    Example:
        >>> gamma, (q, k, v) = smooth(s, gamma, (q, k, v))
    """

    def divide(a: Array) -> Array:
        check_last_axis("written", a, scale.shape[-1])
        return (a.astype(compute_dtype(a.dtype)) / to_rank(scale, a.ndim)).astype(a.dtype)

    def multiply(w: Array) -> Array:
        if w.shape[-2:-1] != scale.shape[-1:]:
            raise ValueError(f"read must have {scale.shape[-1]} rows, got shape {w.shape}.")
        rows = to_rank(scale[..., None], w.ndim)
        return (w.astype(compute_dtype(w.dtype)) * rows).astype(w.dtype)

    return jax.tree.map(divide, written), jax.tree.map(multiply, read)
