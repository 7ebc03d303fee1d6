"""Rotations learned to flatten: where a quantizer with one set of levels loses least."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from isojax import quantizers, transforms
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
    """The rotation in which vectors like those of `x` have the lowest peaks for their length.

    Adam on the orthogonal group (see `stiefel`), from a random Hadamard transform, minimises the
    error of integers with a scale a vector from its peak (`quantizers.absmax`), straight through
    the rounding: the setting of SpinQuant (Liu et al. 2024, arXiv 2405.16406), with the error of
    the vectors themselves in place of the model's loss. What levels are used afterwards is open:
    lower peaks serve all that are shared by the coordinates.

    Args:
        key: draws the start and the minibatches.
        x: vectors to learn from, centred if what is quantized is.
        bits: of the integers.
        steps: of descent.
        batch: vectors a step, drawn with replacement.
        rate: the learning rate.

    Raises:
        ValueError: `d` is no order of a Hadamard matrix, or another argument is not allowed.
    """
    start = transforms.Dense(transforms.hadamard(key, x.shape[-1]).matrix())
    quantizer = quantizers.absmax(bits, "token")
    scale = jnp.mean(jnp.square(x.astype(jnp.float32)))

    def loss(rotation: Any, key: Array) -> Array:
        some = minibatch(key, x, batch)
        return quantization_error(rotation, some, quantizer, rounding="straight_through") / scale

    return fit(loss, start, stiefel(optax.adam(rate)), key=key, steps=steps, checks=10)[0]
