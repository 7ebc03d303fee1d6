"""Transforms learned by the output error of a linear layer, inputs and weights quantized.

So FlatQuant (Sun et al. 2025, arXiv 2410.09426) learns Kronecker factors in front of each linear
layer. Its learned clipping is left to the quantizers here, and its per-channel scale is a separate
stage, as in `balance@flatquant`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from isojax import quantizers
from isojax._core.checks import (
    check_above_zero,
    check_last_axis,
    check_not_empty,
    check_positive,
)
from isojax._core.finite import finite, unless
from isojax.learn.balance import balance_scale
from isojax.learn.fit import fit, minibatch
from isojax.learn.moments import second_moment
from isojax.metrics.error import computed
from isojax.quantizers import Quantizer
from isojax.transforms import Diagonal, Kronecker, Transform, hadamard, kronecker

JUDGED = 2048  # vectors on which learned factors and exponents are compared


def output_error(
    transform: Transform,
    x: Float[Array, "n d"],
    weight: Float[Array, "d o"],
    inputs: Quantizer,
    weights: Quantizer,
) -> Float[Array, ""]:
    """|Q(x T) Q'(T^-1 W) - x W|^2 / |x W|^2: the NMSE of a layer's output, all quantized.

    Args:
        transform: T.
        x: inputs.
        weight: W, all weights that read them, concatenated.
        inputs: Q, of the vectors x T.
        weights: Q', of the rows of (T^-1 W)^T, which act along the input.

    Raises:
        ValueError: the lengths of `x` and `weight` differ, or a dtype is not floating.
    """
    check_last_axis("x", x, weight.shape[0])
    x, weight = computed(x, weight)
    read = inputs.roundtrip(transform.apply(x))
    rows = weights.roundtrip(transform.dual.apply(weight.T))
    y = jnp.matmul(x, weight, precision="highest")
    error = jnp.matmul(read, rows.T, precision="highest") - y
    size = jnp.sum(jnp.square(y))
    return jnp.sum(jnp.square(error)) / jnp.where(size == 0, 1, size)


def learned_kronecker(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    weight: Float[Array, "d o"],
    start: Kronecker,
    bits: int = 4,
    *,
    steps: int = 100,
    batch: int = 256,
    rate: float | Float[Array, ""] = 0.1,
) -> Kronecker:
    """kron(P1, P2) with the least `output_error` in a descent from `start`: FlatQuant's factors.

    Adam on the entries of both factors, with a cosine schedule to 0. Inputs and weights are
    integers with one scale per vector from its peak (`quantizers.absmax`), straight through the
    rounding. Never worse than `start` on the first 2048 vectors, which decide.

    Args:
        key: draws the minibatches.
        x: inputs to learn from.
        weight: all weights that read them, concatenated.
        start: the first value, square factors.
        bits: of the integers.
        steps: of descent.
        batch: vectors per step, drawn with replacement.
        rate: of Adam, above 0, in units of the root mean square of a factor's entries.

    Returns:
        Dense factors, in fp32 or fp64; NaN where an input is traced and not finite.

    Raises:
        ValueError: `x` or `weight` is empty, not finite or does not fit the other, or an argument
            is not allowed.
    """
    check_above_zero("rate", rate)
    check_not_empty("x", x)
    check_last_axis("x", x, weight.shape[0])
    x, weight = computed(x, weight)
    size = finite("the mean square of x", jnp.mean(jnp.square(x)))
    size = size + finite("the mean square of weight", jnp.mean(jnp.square(weight)))
    quantizer = quantizers.straight_through(quantizers.absmax(bits, "token"), scales="learned")
    factors = start.left.matrix(), start.right.matrix()
    units = [jnp.sqrt(jnp.mean(jnp.square(f))) for f in factors]

    def made(free: Any) -> Kronecker:
        return kronecker(*(f * unit for f, unit in zip(free, units, strict=True)))

    def loss(free: Any, key: Array) -> Array:
        return output_error(made(free), minibatch(key, x, batch), weight, quantizer, quantizer)

    def judge(free: Any) -> Array:
        return output_error(made(free), x[:JUDGED], weight, quantizer, quantizer)

    optimizer = optax.adam(optax.cosine_decay_schedule(rate, check_positive("steps", steps)))
    first = tuple(unless(jnp.isfinite(size), f / u) for f, u in zip(factors, units, strict=True))
    checks = math.gcd(steps, 10)
    return made(
        fit(loss, first, optimizer, key=key, steps=steps, checks=checks, objective=judge)[0]
    )


def best_balance(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    weight: Float[Array, "d o"],
    bits: int = 4,
    *,
    steps: int = 8,
) -> Float[Array, " d"]:
    """`balance_scale` of the exponent with the least `output_error` before a Hadamard matrix.

    Exponents are 0, 1 / steps, ..., 1, as in AWQ's search, with inputs and weights quantized.

    Args:
        key: draws the signs of the Hadamard matrix.
        x: inputs, of which the first 2048 are used.
        weight: all weights that read them, concatenated.
        bits: of integers with one scale per vector from its peak.
        steps: of the grid.

    Returns:
        s as `balance_scale`; NaN where an input is traced and not finite.

    Raises:
        ValueError: as `learned_kronecker`; or d is no order of a Hadamard matrix.
    """
    check_not_empty("x", x)
    check_last_axis("x", x, weight.shape[0])
    x, weight = computed(x, weight)
    size = jnp.sqrt(finite("the mean squares of x", jnp.diagonal(second_moment(x))))
    rows = finite("the mean squares of weight", jnp.diagonal(second_moment(weight.T)))
    flat, quantizer = hadamard(key, x.shape[-1]), quantizers.absmax(bits, "token")

    def scale(exponent: Array) -> Array:
        return balance_scale(size, jnp.sqrt(rows), exponent)

    def error(exponent: Array) -> Array:
        turn = Diagonal(1 / scale(exponent)) @ flat
        return output_error(turn, x[:JUDGED], weight, quantizer, quantizer)

    grid = jnp.arange(check_positive("steps", steps) + 1, dtype=x.dtype) / steps
    known = jnp.all(jnp.isfinite(size)) & jnp.all(jnp.isfinite(rows))
    return unless(known, scale(grid[jnp.argmin(jax.lax.map(error, grid))]))
