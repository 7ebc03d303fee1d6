"""Codebooks: the nearest of up to 256 levels at any values."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float, UInt8

from isojax._core.axes import to_rank
from isojax._core.checks import check_choice, check_last_axis, compute_dtype
from isojax._core.pytree import pytree, static
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codes import Codes, Packed, loaded
from isojax.quantizers.granularity import (
    NORMALIZE,
    check_granularity,
    divide,
    shared_scale,
    split,
)
from isojax.quantizers.packing import unpack_columns

MOST_LEVELS = 256
FUSED_LEVELS = 16


@pytree
class Codebook(Quantizer):
    """Divides by a scale and takes the nearest level; made by `nearest_level` and `lloyd_max_*`.

    Up to 16 levels, the search is comparisons that fuse with the division.

    Attributes:
        levels: in increasing order; [n] for all components, or [d, n] with a row for each component
            of the last axis. A row with fewer levels ends in +inf, which is never nearest.
        normalize: the scale of the elements that share one: their root mean square `rms`, their
            Euclidean norm `norm`, their largest magnitude `peak`, or `none`.
        granularity: which elements share a scale, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0.
        symmetric: whether the levels are known to be their own negatives; a kernel then searches
            half of them.
        dim: length of the vectors that the levels are made for, 0 for any.
    """

    levels: Float[Array, "*d n"]
    normalize: str = static()
    granularity: str = static()
    group: int = static()
    symmetric: bool = static()
    dim: int = static(default=0, kw_only=True)  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def bits(self) -> int:
        """Bits per code at fixed rate."""
        return (self.levels.shape[-1] - 1).bit_length()

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        v = self._split(y)
        return self._codes(y, v, shared_scale(v, self.normalize, self.granularity))

    def encode_like(self, y: Float[Array, "*batch d"], codes: Codes) -> Codes:  # noqa: D102
        return self._codes(y, self._split(y), codes.scale)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        index = split(codes.values, self.granularity, self.group)
        if codes.scale is None:
            return level_of(index, self._rows()).reshape(codes.values.shape)
        v = level_of(index, self._rows().astype(codes.scale.dtype))
        return (v * codes.scale).reshape(codes.values.shape)

    def roundtrip(self, y: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:  # noqa: D102
        v = self._split(y)
        scale = shared_scale(v, self.normalize, self.granularity)
        v = nearest_value(divide(v, scale), self._rows().astype(v.dtype))
        v = v if scale is None else v * scale
        return v.reshape(y.shape).astype(canonicalize_dtype(y.dtype))

    def load_columns(self, packed: Packed) -> tuple[Array, Array | None] | None:  # noqa: D102
        one_scale = self.levels.ndim == 1 and self.granularity == "token"
        if not one_scale or packed.outliers is not None or packed.dim % 8:
            return None
        data = jax.lax.optimization_barrier(packed.data.swapaxes(0, 1))
        values = level_of(unpack_columns(data, self.bits, packed.dim), self._rows())
        return values, None if packed.scale is None else loaded(packed.scale)[:, 0]

    @property
    def table(self) -> Array:
        """The levels, made symmetric if `symmetric`."""
        return (self.levels - self.levels[..., ::-1]) / 2 if self.symmetric else self.levels

    def _rows(self) -> Array:
        """The levels in a shape that broadcasts against split elements, levels on the last axis."""
        if self.levels.ndim == 1:
            return self.table
        return jnp.moveaxis(split(self.table.T, self.granularity, self.group), 0, -1)

    def _split(self, y: Array) -> Array:
        if self.levels.ndim == 2:
            check_last_axis("y", y, self.levels.shape[0])
        return split(y.astype(compute_dtype(y.dtype, "y")), self.granularity, self.group)

    def _codes(self, y: Array, v: Array, scale: Array | None) -> Codes:
        values = nearest(divide(v, scale), self._rows())
        return Codes(values.reshape(y.shape), scale, None, self.bits)


def nearest_level(
    levels: Float[Array, "*d n"],
    normalize: str = "none",
    granularity: str = "token",
    group: int = 0,
    symmetric: bool = False,
    dim: int = 0,
) -> Codebook:
    """The codebook of any `levels`, which it sorts.

    Args:
        levels: 2 to 256 of them, or [d, n] with n for each component; see `Codebook`.
        normalize: `none`, or divide by the `rms`, the `norm` or the `peak` of the elements that
            share a scale.
        granularity: which elements share a scale, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0; it must divide the last axis.
        symmetric: make an even number of levels symmetric about zero,
            `(levels - levels[::-1]) / 2`, also while they are learned.
        dim: length of the vectors that they are made for, where that is known; d for rows.

    Raises:
        ValueError: an argument is none of the allowed values.
    """
    levels = sorted_levels(levels)
    check_choice("normalize", normalize, NORMALIZE)
    check_granularity(granularity, group)
    if symmetric and levels.shape[-1] % 2:
        raise ValueError(f"levels must be even in number to be symmetric, got {levels.shape[-1]}.")
    dim = levels.shape[0] if levels.ndim == 2 else dim
    return Codebook(levels, normalize, granularity, group, symmetric, dim=dim)


def sorted_levels(levels: Float[Array, "*d n"]) -> Float[Array, "*d n"]:
    """`levels` in increasing order.

    Raises:
        ValueError: they are neither 2 to 256 numbers nor rows of 2 to 256.
    """
    levels = jnp.asarray(levels, float)
    if levels.ndim not in (1, 2) or not 2 <= levels.shape[-1] <= MOST_LEVELS:
        raise ValueError(
            f"levels must be 2 to {MOST_LEVELS} numbers, or rows of as many, "
            f"got shape {levels.shape}."
        )
    return jnp.sort(levels)


def nearest(v: Float[Array, "..."], levels: Float[Array, "... n"]) -> UInt8[Array, "..."]:
    """The index of the nearest of the sorted `levels`; the lower one in a tie.

    Leading axes of `levels` broadcast against `v`.
    """
    middles = _middles(levels).astype(v.dtype)

    def pass_middle(i: Any, index: Array) -> Array:
        return index + (v > to_rank(middles[..., i], v.ndim)).astype(jnp.uint8)

    index, number = jnp.zeros(v.shape, jnp.uint8), middles.shape[-1]
    if number < FUSED_LEVELS:
        return functools.reduce(lambda index, i: pass_middle(i, index), range(number), index)
    return jax.lax.fori_loop(0, number, pass_middle, index, unroll=8)


def level_of(index: UInt8[Array, "..."], levels: Float[Array, "... n"]) -> Float[Array, "..."]:
    """The level of each `index`; leading axes of `levels` broadcast against it.

    Up to 16 levels, bit by bit: binary choices that fuse with the computation of the index.
    """
    number = levels.shape[-1]
    if 1 < number <= FUSED_LEVELS:
        index, rest = (
            index.astype(jnp.uint32),
            [to_rank(levels[..., i], index.ndim) for i in range(number)],
        )
        for bit in range((number - 1).bit_length()):
            rest += rest[-1:] * (len(rest) % 2)
            odd = (index >> bit) & 1 == 1
            rest = [jnp.where(odd, b, a) for a, b in zip(rest[::2], rest[1::2], strict=True)]
        return jnp.broadcast_to(rest[0], jnp.broadcast_shapes(index.shape, levels.shape[:-1]))
    rows = jnp.arange(levels.size // number).reshape(levels.shape[:-1])
    return levels.ravel()[number * to_rank(rows, index.ndim) + index.astype(rows.dtype)]


def nearest_value(v: Float[Array, "..."], levels: Float[Array, "... n"]) -> Float[Array, "..."]:
    """`level_of(nearest(v, levels), levels)` in one step."""
    if levels.shape[-1] > FUSED_LEVELS:
        return level_of(nearest(v, levels), levels)
    middles = _middles(levels)
    value = jnp.broadcast_to(levels[..., 0], v.shape)
    for i in range(middles.shape[-1]):
        middle, above = (to_rank(a, v.ndim) for a in (middles[..., i], levels[..., i + 1]))
        value = jnp.where(v > middle, above, value)
    return value


def _middles(levels: Array) -> Array:
    return (levels[..., 1:] + levels[..., :-1]) / 2
