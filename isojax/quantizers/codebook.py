"""Codebooks: nearest of a few levels, which may lie anywhere."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_choice, compute_dtype
from isojax._core.pytree import pytree, static
from isojax.quantizers.base import Codes, Quantizer
from isojax.quantizers.granularity import (
    NORMALIZE,
    check_granularity,
    divide,
    shared_scale,
    split,
)

MOST_LEVELS = 256


@pytree
class Codebook(Quantizer):
    """Divides by a scale and takes the nearest level; made by `nearest_level` and `lloyd_max_*`.

    Attributes:
        levels: in increasing order.
        normalize: the scale of the numbers that share one: their root mean square `rms`, their
            Euclidean norm `norm`, or `none`.
        granularity: which numbers share a scale, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0.
    """

    levels: Float[Array, "n"]
    normalize: str = static()
    granularity: str = static()
    group: int = static()

    @property
    def bits(self) -> int:
        """Fixed-rate bits a code."""
        return (self.levels.shape[-1] - 1).bit_length()

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        v = self._split(y)
        return self._codes(y, v, shared_scale(v, self.normalize, self.granularity))

    def encode_like(self, y: Float[Array, "*batch d"], codes: Codes) -> Codes:  # noqa: D102
        return self._codes(y, self._split(y), codes.scale)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        if codes.scale is None:
            return self.levels[codes.values]
        v = self.levels.astype(codes.scale.dtype)[split(codes.values, self.granularity, self.group)]
        return (v * codes.scale).reshape(codes.values.shape)

    def _split(self, y: Array) -> Array:
        return split(y.astype(compute_dtype(y.dtype, "y")), self.granularity, self.group)

    def _codes(self, y: Array, v: Array, scale: Array | None) -> Codes:
        values = nearest(divide(v, scale), self.levels)
        return Codes(values.reshape(y.shape), scale, None, self.bits)


def nearest_level(
    levels: Float[Array, "n"], normalize: str = "none", granularity: str = "token", group: int = 0
) -> Codebook:
    """The codebook of any `levels`, which it sorts.

    Args:
        levels: 2 to 256 numbers.
        normalize: `none`, or divide by the `rms` or the `norm` of the numbers that share a scale.
        granularity: which numbers share a scale, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0; it must divide the last axis.

    Raises:
        ValueError: an argument is none of the allowed values.
    """
    levels = jnp.asarray(levels, float)
    if levels.ndim != 1 or not 2 <= levels.shape[0] <= MOST_LEVELS:
        raise ValueError(f"levels must be 2 to {MOST_LEVELS} numbers, got shape {levels.shape}.")
    check_choice("normalize", normalize, NORMALIZE)
    check_granularity(granularity, group)
    return Codebook(jnp.sort(levels), normalize, granularity, group)


def nearest(v: Float[Array, "..."], levels: Float[Array, "n"]) -> Array:
    """The index of the nearest of the sorted `levels`, the lower one of two as near (uint8)."""
    middles = ((levels[1:] + levels[:-1]) / 2).astype(v.dtype)

    def pass_middle(i: Any, index: Array) -> Array:
        return index + (v > middles[i]).astype(jnp.uint8)

    start = jnp.zeros(v.shape, jnp.uint8)
    return jax.lax.fori_loop(0, middles.shape[0], pass_middle, start, unroll=8)
