"""Scales that balance the magnitude of inputs with that of the weights that read them.

For y = x W in coordinates T, that is x T and T^-1 W, both quantized, the error of the output is
proportional to |x T| |T^-1 W| once both are flattened (see `isojax.learn.wush`). The diagonal T
with the least error has T_j = (rms of weight row j / rms of input j)^(1/2). QuIP's code rescales
weights and Hessian so, for weight-only quantization (Chee et al. 2023, arXiv 2307.13304). With
ranges in place of the rms it is SmoothQuant, `isojax.learn.smooth_scale`, which SmoothRot (arXiv
2506.05413) puts before a Hadamard matrix.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import compute_dtype


def balance_scale(
    x_rms: Float[Array, "*batch i"],
    weight_rms: Float[Array, "*batch i"],
    exponent: float | Float[Array, ""] = 0.5,
) -> Float[Array, "*batch i"]:
    """s_j = (rms of x_j / rms of w_j)^exponent, scaled to a geometric mean of 1: for x / s and s w.

    At exponent 0.5 the rms of channel j of x / s equals that of row j of s w, up to one factor for
    all j: x and w may have any units. Channels that are zero in x or w have s_j = 1.

    Args:
        x_rms: root mean square of each channel of the inputs.
        weight_rms: of each row of the weights that read them.
        exponent: of the ratio, 0 to 1; traced.

    Returns:
        s in fp32, or fp64 for fp64.

    Raises:
        ValueError: `exponent` is a Python number out of its range, or the shapes differ.
    """
    if isinstance(exponent, int | float) and not 0 <= exponent <= 1:
        raise ValueError(f"exponent must be from 0 to 1, got {exponent!r}.")
    if weight_rms.shape != x_rms.shape:
        raise ValueError(f"weight_rms must have shape {x_rms.shape}, got {weight_rms.shape}.")
    x = x_rms.astype(compute_dtype(x_rms.dtype, "x_rms"))
    weight = weight_rms.astype(x.dtype)
    live = (x > 0) & (weight > 0)
    ratio = jnp.log(jnp.where(live, x, 1)) - jnp.log(jnp.where(live, weight, 1))
    mean = jnp.mean(ratio, -1, where=live, keepdims=True)
    return jnp.where(live, jnp.exp(exponent * (ratio - mean)), 1)
