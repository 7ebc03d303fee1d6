"""Scales, levels and codes of a codebook, inside of a kernel."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from isojax.kernels.tile import power_of_two
from isojax.quantizers.codebook import Codebook

MOST_LEVELS = 16


def unsupported_codebook(quantizer: Any) -> str:
    """What a quantizer must be for the kernels; empty if `quantizer` is."""
    if not isinstance(quantizer, Codebook):
        return f"a Codebook as quantizer, got {type(quantizer).__name__}."
    if quantizer.granularity != "token":
        return f"granularity 'token', got {quantizer.granularity!r}."
    if quantizer.levels.ndim != 1 or quantizer.levels.shape[0] > MOST_LEVELS:
        return f"2 to {MOST_LEVELS} levels for all numbers, got shape {quantizer.levels.shape}."
    return ""


def read_levels(ref: Any) -> list[Array]:
    """The levels one by one, followed by infinite ones up to a power of two."""
    (number,) = ref.shape
    infinite = [jnp.float32(math.inf)] * (power_of_two(number) - number)
    return [ref[i].astype(jnp.float32) for i in range(number)] + infinite


def shared_scale(y: Array, normalize: str, size: int) -> Array | None:
    """As `granularity.shared_scale` for one scale a row of `size` numbers, [rows, 1]."""
    if normalize == "none":
        return None
    square = jnp.sum(y * y, axis=-1, keepdims=True)
    return jnp.sqrt(square / size if normalize == "rms" else square)


def divided(y: Array, scale: Array | None) -> Array:
    """`y / scale`, and `y` where the scale is zero or None; by way of the reciprocal."""
    return y if scale is None else y * (1 / jnp.where(scale == 0, 1, scale))


def search(v: Array, levels: list[Array]) -> list[Array]:
    """The bits, highest first, of the index of the nearest level, the lower one of two as near.

    A binary search among the middles of neighbours: as many comparisons as bits.
    """
    middles = [(a + b) / 2 for a, b in zip(levels[:-1], levels[1:], strict=True)]
    bits = []
    while middles:
        half = len(middles) // 2
        bits.append(v > middles[half])
        low, high = middles[:half], middles[half + 1 :]
        middles = [jnp.where(bits[-1], b, a) for a, b in zip(low, high, strict=True)]
    return bits


def pick(bits: list[Array], levels: list[Array]) -> Array:
    """The level whose index has these bits, highest first."""
    values: list[Any] = levels
    for bit in bits:
        half = len(values) // 2
        values = [jnp.where(bit, b, a) for a, b in zip(values[:half], values[half:], strict=True)]
    return values[0]


def index_of(bits: list[Array]) -> Array:
    """The number that has these bits, highest first."""
    index = jnp.zeros(bits[0].shape, jnp.int32)
    for bit in bits:
        index = 2 * index + bit.astype(jnp.int32)
    return index


def bits_of(index: Array, number: int) -> list[Array]:
    """The `number` bits of `index`, highest first."""
    return [(index >> i) & 1 == 1 for i in reversed(range(number))]
