"""The terms of the error of a quantized linear layer: bits, concentration and alignment, in dB.

The terms are those of CAT (arXiv 2603.04359); the definitions are derived here from its abstract.
Let y = x W, with x quantized per token and W per output channel to levels evenly spaced over the
range, whose errors are uniform and independent. Then

    SQNR of y = bits + concentration + alignment

if one of x and W is quantized and the other exact. With both quantized their noise adds, so that
bits and concentration of the two combine like parallel resistances. A rotation of x, undone in W,
changes only the concentration; other transforms improve the alignment, see `isojax.learn.wush`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_divides
from isojax.metrics.error import computed, nmse


def sqnr_db(y: Float[Array, "..."], y_hat: Float[Array, "..."]) -> Float[Array, ""]:
    """Signal to quantization noise: energy of `y` over that of the error, in dB."""
    return -_db(nmse(y, y_hat))


def concentration_db(x: Float[Array, "*batch d"], group: int = 0) -> Float[Array, ""]:
    """Mean |x|^2 over the mean squared range of a vector, from -max to max, in dB.

    It is highest, 10 log10(d / 4), for vectors of equal magnitudes. For a weight W pass W^T, whose
    vectors are the output channels.

    Args:
        x: vectors, with one scale each.
        group: elements that share a scale instead, 0 for whole vectors.

    Raises:
        ValueError: `group` does not divide d.
    """
    (x,) = computed(x)
    dim = x.shape[-1]
    size = check_divides("group", group, "d", dim) if group else dim
    most = jnp.max(jnp.abs(x.reshape(*x.shape[:-1], -1, size)), -1)
    return _db(dim * jnp.mean(jnp.square(x)) / jnp.mean(jnp.square(2 * most)))


def alignment_db(x: Float[Array, "*batch d"], w: Float[Array, "d o"]) -> Float[Array, ""]:
    """Mean |x w|^2 over mean |x|^2 times the Frobenius norm |w|^2, in dB; at most 0."""
    x, w = computed(x, w)
    y = jnp.matmul(x, w, precision="highest")
    both = jnp.mean(jnp.sum(jnp.square(x), -1)) * jnp.sum(jnp.square(w))
    return _db(jnp.mean(jnp.sum(jnp.square(y), -1)) / both)


def bits_db(levels: int) -> Float[Array, ""]:
    """The contribution of the bits to the SQNR, 10 log10(12 (levels - 1)^2), in dB.

    CAT has 2^bits levels over the range; `isojax.quantizers.absmax` has one less by default.
    """
    return _db(jnp.asarray(12.0 * (levels - 1) ** 2))


def expected_sqnr_db(
    x: Float[Array, "*batch d"],
    w: Float[Array, "d o"],
    *,
    x_levels: int = 15,
    w_levels: int = 15,
    group: int = 0,
) -> Float[Array, ""]:
    """The SQNR of x w in dB by the law above, ranges from -max to max.

    Args:
        x: inputs, with one scale per vector.
        w: weight, with one scale per output channel.
        x_levels: of inputs; 0 for exact ones.
        w_levels: of weights; 0 for exact ones.
        group: elements along d that share a scale instead, in both; 0 for whole vectors.

    Raises:
        ValueError: `group` does not divide d.
    """
    sides = [(v, levels) for v, levels in ((x, x_levels), (w.T, w_levels)) if levels]
    terms = [bits_db(levels) + concentration_db(v, group) for v, levels in sides]
    noise = sum((10 ** (-term / 10) for term in terms), jnp.zeros(()))
    return alignment_db(x, w) - _db(noise)


def _db(ratio: Array) -> Array:
    return 10 * jnp.log10(ratio)
