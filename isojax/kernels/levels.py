"""Scales, levels and codes of a codebook inside a kernel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from isojax.kernels._pallas import fma, saturated
from isojax.kernels.tile import gather, power_of_two
from isojax.quantizers.codebook import Codebook

MOST_LEVELS = 16
STEEP = 2.0**100


def unsupported_codebook(quantizer: Any) -> str:
    """The requirement that the quantizer does not meet; empty if the kernels support it."""
    if type(quantizer) is not Codebook:
        return f"a Codebook as quantizer, got {type(quantizer).__name__}."
    if quantizer.granularity != "token":
        return f"granularity 'token', got {quantizer.granularity!r}."
    if quantizer.normalize == "peak":
        return "normalize 'none', 'rms' or 'norm', got 'peak'."
    if quantizer.levels.ndim != 1 or quantizer.levels.shape[0] > MOST_LEVELS:
        return f"2 to {MOST_LEVELS} levels for all elements, got shape {quantizer.levels.shape}."
    return ""


@dataclasses.dataclass(frozen=True)
class Levels:
    """The levels of a codebook in a kernel, for one scale per vector.

    The borders of cells are multiplied by the scale of a vector, which is cheaper than dividing the
    vector. Symmetric levels are searched by magnitude, half of them.

    Attributes:
        ref: all levels.
        values: the levels, or the positive half of symmetric ones, padded with infinity to a power
            of two.
        symmetric: see `Codebook`.
    """

    ref: Any
    values: list[Any]
    symmetric: bool

    @classmethod
    def read(cls, ref: Any, symmetric: bool) -> Levels:
        """The levels in `ref`, written by `codecs.levels_of`."""
        (number,) = ref.shape
        first = number // 2 if symmetric else 0
        values: list[Any] = [ref[i].astype(jnp.float32) for i in range(first, number)]
        infinite = power_of_two(len(values)) - len(values)
        return cls(ref, values + [jnp.float32(math.inf)] * infinite, symmetric)

    def nearest(self, v: Array, border: Any = 1, value: Any = 1) -> Array:
        """The level nearest to `v / border`, times `value`; the lower one in a tie.

        Symmetric levels below zero take the higher one in a tie.
        """
        size = jnp.abs(v) if self.symmetric else v
        values = [_times(u, value) for u in self.values]
        for middle in self._middles(size, border):
            half, above = len(values) // 2, size > middle
            pairs = zip(values[:half], values[half:], strict=True)
            values = [jnp.where(above, b, a) for a, b in pairs]
        found = jnp.broadcast_to(values[0], v.shape)
        return jnp.where(v > 0, found, -found) if self.symmetric else found

    def index(self, v: Array, border: Any = 1) -> Array:
        """The index of the level of `nearest`."""
        size = jnp.abs(v) if self.symmetric else v
        index, middles = jnp.zeros(v.shape, jnp.int32), self._middles(size, border)
        for place, middle in zip(reversed(range(self.bits)), middles, strict=True):
            index |= jnp.where(size > middle, 1 << place, 0)
        if not self.symmetric:
            return index
        half = self.ref.shape[0] // 2
        if len(self.values) == half:
            return index ^ jnp.where(v > 0, half, half - 1)
        return jnp.where(v > 0, half + index, half - 1 - index)

    def fields(self, v: Array, border: Any, interpret: bool) -> list[tuple[Array, float, float]]:
        """The fields of the index of the level of `nearest`; see `packing.fields`.

        For symmetric levels, a power of two of them. In fp32, which has twice the rate of
        comparisons: a comparison is a saturated product, 0 or 1, and the selection of a border is a
        product with it.

        Returns:
            For each field a tile t and numbers a and b, such that the field is a t + b.
        """
        if not isinstance(border, int):
            v = v * (1 / jnp.where(border == 0, 1, border))
        size, number = jnp.abs(v), self.bits
        pairs = zip(self.values[:-1], self.values[1:], strict=True)
        middles: list[Any] = [(a + b) / 2 * -STEEP for a, b in pairs]
        place: Any = None
        while middles:
            half = len(middles) // 2
            above = saturated(size, STEEP, middles[half], interpret)
            place = above if place is None else fma(place, 2.0, above, interpret)
            pairs = zip(middles[:half], middles[half + 1 :], strict=True)
            middles = [fma(above, b - a, a, interpret) for a, b in pairs]
        positive = lax.bitcast_convert_type(0 - v, jnp.int32) & -(2**31)
        sign = lax.bitcast_convert_type(positive ^ -0x40800000, jnp.float32)  # 1 or -1
        whole, offset = 2.0**number, 0.0 if place is None else place
        if number == 2:  # bits 0 and 1, then bit 2
            return [(sign * (offset - 1.5), 1.0, 1.5), (sign, 0.5, 0.5)]
        return [(sign * (offset + 0.5), 1.0, whole - 0.5)]

    def at(self, index: Array) -> Array:
        """The levels at `index`."""
        return gather(self.ref, index).astype(jnp.float32)

    @property
    def full(self) -> bool:
        """Whether the number of levels is a power of two."""
        (number,) = self.ref.shape
        return number == power_of_two(number)

    @property
    def bits(self) -> int:
        """Bits of an index into `values`."""
        return len(self.values).bit_length() - 1

    def _middles(self, v: Array, border: Any) -> Iterator[Array]:
        """The borders to compare `v` with, one after the other, in a binary search."""
        pairs = zip(self.values[:-1], self.values[1:], strict=True)
        middles: list[Any] = [_times((a + b) / 2, border) for a, b in pairs]
        while middles:
            half = len(middles) // 2
            middle = middles[half]
            yield middle
            low, high = middles[:half], middles[half + 1 :]
            middles = [jnp.where(v > middle, b, a) for a, b in zip(low, high, strict=True)]


def _times(level: Any, by: Any) -> Any:
    return level if isinstance(by, int) else level * by


def shared_scale(y: Array, normalize: str, size: int) -> Array | None:
    """`granularity.shared_scale` for one scale per row of `size` elements, [rows, 1]."""
    if normalize == "none":
        return None
    square = jnp.sum(y * y, axis=-1, keepdims=True)
    return jnp.sqrt(square / size if normalize == "rms" else square)
