"""Errors of `x_hat` with respect to `x`, over all elements."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_not_empty, compute_dtype


def mse(x: Float[Array, "..."], x_hat: Float[Array, "..."]) -> Float[Array, ""]:
    """Mean squared error, in squared units of `x`."""
    x, x_hat = pair(x, x_hat)
    return jnp.mean(jnp.square(x_hat - x))


def nmse(x: Float[Array, "..."], x_hat: Float[Array, "..."]) -> Float[Array, ""]:
    """Mean squared error over the mean square of `x`: 1 for the zero predictor.

    An `x` of zeros gives NaN or infinity.
    """
    return mse(x, x_hat) / jnp.mean(jnp.square(computed(x)[0]))


def relative_error(x: Float[Array, "..."], x_hat: Float[Array, "..."]) -> Float[Array, ""]:
    """Frobenius norm of the error over that of `x`: the square root of `nmse`."""
    return jnp.sqrt(nmse(x, x_hat))


def cosine(x: Float[Array, "*batch d"], x_hat: Float[Array, "*batch d"]) -> Float[Array, ""]:
    """Cosine similarity of each vector along the last axis, averaged over the vectors.

    The cosine with a zero vector counts as 0.
    """
    x, x_hat = pair(x, x_hat)
    dot, xx, hh = (jnp.sum(a * b, -1) for a, b in ((x, x_hat), (x, x), (x_hat, x_hat)))
    return mean_cosine(dot, xx, hh)


def mean_cosine(
    dot: Float[Array, "*batch"], xx: Float[Array, "*batch"], hh: Float[Array, "*batch"]
) -> Float[Array, ""]:
    """Mean of `dot / sqrt(xx * hh)`, where a zero denominator gives 0."""
    norms = jnp.sqrt(xx) * jnp.sqrt(hh)
    return jnp.mean(jnp.where(norms == 0, 0, dot / jnp.where(norms == 0, 1, norms)))


def pair(
    x: Float[Array, "..."], x_hat: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """An array and its reconstruction, in the dtype of the computation.

    Raises:
        ValueError: their shapes differ, they are empty, or a dtype is not floating.
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"x_hat must have the shape of x, {x.shape}, got {x_hat.shape}.")
    check_not_empty("x", x)
    x, x_hat = computed(x, x_hat)
    return x, x_hat


def computed(*arrays: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    """The arrays in the dtype of the computation: fp32 for bf16 and fp16."""
    return tuple(a.astype(compute_dtype(a.dtype)) for a in arrays)
