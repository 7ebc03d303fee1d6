"""Rotations learned to flatten vectors, for quantizers with one set of levels."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from isojax import quantizers, transforms
from isojax._core.checks import check_above_zero, check_not_empty, check_positive, compute_dtype
from isojax._core.finite import finite, unless
from isojax.learn.fit import fit, minibatch
from isojax.learn.objectives import quantization_error
from isojax.learn.stiefel import stiefel


def learned_rotation(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    bits: int = 3,
    *,
    steps: int = 200,
    batch: int = 256,
    rate: float | Float[Array, ""] = 1e-2,
) -> transforms.Dense:
    """The rotation that minimises the rounding error of integers scaled by the peak.

    Adam on the orthogonal group (see `stiefel`), from a random Hadamard transform, minimises the
    error of integers with one scale per vector from its peak (`quantizers.absmax`), straight
    through the rounding: the setting of SpinQuant (Liu et al. 2024, arXiv 2405.16406), with the
    error of the vectors in place of the model's loss. Computed and returned in fp32 for bf16 and
    fp16. Zeros leave the start unchanged. NaN where the mean square of `x` is traced and not
    finite.

    Args:
        key: draws the start and the minibatches.
        x: vectors to learn from; centred if the quantized vectors are.
        bits: of the integers.
        steps: of descent.
        batch: vectors per step, drawn with replacement.
        rate: of Adam, above 0: about the radians by which a plane turns per step.

    Raises:
        ValueError: `d` is no order of a Hadamard matrix, the dtype of `x` is not floating, its
            mean square is not finite, or another argument is not allowed.
    """
    check_above_zero("rate", rate)
    check_not_empty("x", x)
    x = x.astype(compute_dtype(x.dtype))
    first, key = jax.random.split(key)
    start = transforms.Dense(transforms.hadamard(first, x.shape[-1]).matrix())
    quantizer = quantizers.absmax(bits, "token")
    energy = finite("the mean square of x", jnp.mean(jnp.square(x)))
    start = transforms.Dense(unless(~jnp.isnan(energy), start.entries))
    energy = jnp.where(energy == 0, 1, energy)

    def loss(rotation: Any, key: Array) -> Array:
        some = minibatch(key, x, batch)
        return quantization_error(rotation, some, quantizer, rounding="straight_through") / energy

    checks = math.gcd(check_positive("steps", steps), 10)
    return fit(loss, start, stiefel(optax.adam(rate)), key=key, steps=steps, checks=checks)[0]
