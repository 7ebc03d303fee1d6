"""The layout of vectors in the lanes of a tile [rows, lanes].

Arrays in a Triton kernel have power-of-two lengths, but vectors and blocks need not. So a tile has
`width` lanes for every `pitch` elements in memory, and masks the others.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from isojax.kernels._pallas import Span, load, store

THREADS = 32  # of a warp


def power_of_two(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


@dataclasses.dataclass(frozen=True)
class Lanes:
    """The lanes of vectors: lane `width * g + j` is element `pitch * g + j`, for j below `pitch`.

    Attributes:
        groups: number of groups of `pitch` elements.
        pitch: elements per group in memory.
        min_rows: minimum of rows per tile.
        min_warps: minimum of warps per tile.
        elements: elements per thread.
        programs: number of programs to divide many tiles among; several times the number of cores,
            fewer where the shared preparation is expensive.
    """

    groups: int
    pitch: int = 1
    min_rows: int = 1
    min_warps: int = 4
    elements: int = 16
    programs: int = 4096

    @property
    def width(self) -> int:
        """Lanes per group."""
        return power_of_two(self.pitch)

    @property
    def size(self) -> int:
        """Elements in all groups."""
        return self.groups * self.pitch

    @property
    def count(self) -> int:
        """Lanes per vector."""
        return power_of_two(self.groups) * self.width

    @property
    def warps(self) -> int:
        """Warps per tile: the minimum, or as many as one row fills."""
        return min(max(self.count // (self.elements * THREADS), self.min_warps), 32)

    @property
    def rows(self) -> int:
        """Rows per tile: such that each thread holds `elements` elements."""
        return max(self.min_rows, self.elements * THREADS * self.warps // self.count)

    def places(self, span: Span, size: int) -> tuple[tuple[Array, Array], Any]:
        """Row and column of every lane of a tile, and the mask of lanes that exist; None if all do.

        Args:
            span: the rows of the tile.
            size: elements per vector in memory, at most `size` of the lanes.
        """
        if self.pitch == self.width:
            row, column = indices(span.rows, self.count)
            return placed(span, row, column, [column < size] if size < self.count else [])
        # groups on a separate axis, so that Triton sees which lanes are adjacent in memory
        shape = (span.rows, power_of_two(self.groups), self.width)
        row, group, lane = (lax.broadcasted_iota(jnp.int32, shape, i) for i in range(3))
        column, masks = group * self.pitch + lane, [lane < self.pitch]
        if size < shape[1] * self.pitch:
            masks.append(column < size)
        return placed(span, row, column, masks)


ONE = Span(1, 0, None)


def indices(rows: int, columns: int) -> tuple[Array, Array]:
    """Row and column of every element of a matrix."""
    row, column = (lax.broadcasted_iota(jnp.int32, (rows, columns), i) for i in (0, 1))
    return row, column


def placed(
    span: Span, row: Array, column: Array, masks: Sequence[Array] = ()
) -> tuple[tuple[Array, Array], Any]:
    """Indices in the block of a program, and the conjunction of `masks` and of rows that exist."""
    row = row if isinstance(span.start, int) and span.start == 0 else row + span.start
    both = [*masks] if span.live is None else [row < span.live, *masks]
    return (row, column), functools.reduce(operator.and_, both) if both else None


def read(ref: Any, places: tuple[Array, ...], mask: Any, other: float = 0.0) -> Array:
    """The elements of `ref` at `places`, in fp32 if floating; `other` where masked."""
    return wide(read_raw(ref, places, mask, other))


def read_raw(ref: Any, places: tuple[Array, ...], mask: Any, other: float = 0.0) -> Array:
    """The same in the dtype of `ref`, and in the shape of `places`."""
    at = ref.at[places]
    return load(at) if mask is None else load(at, mask=mask, other=jnp.array(other, ref.dtype))


def wide(value: Array) -> Array:
    """A result of `read_raw` as [rows, lanes], in fp32 if floating."""
    value = value.reshape(value.shape[0], -1)
    return value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value


def vectors(lanes: Lanes, size: int) -> Callable[[Span, Sequence[Any]], Array]:
    """The `load` of `over_rows` for vectors of length `size`, the only tiled operand."""
    return lambda span, tiled: read_raw(tiled[0], *lanes.places(span, size))


def write(ref: Any, places: tuple[Array, ...], mask: Any, value: Array) -> None:
    """Write `value` [rows, lanes] at `places`, in the dtype of `ref`."""
    store(ref.at[places], value.reshape(places[0].shape).astype(ref.dtype), mask=mask)


def gather(ref: Any, index: Array) -> Array:
    """`ref[index]` of a small table, which fits the caches."""
    return load(ref.at[index])


def rows_of(span: Span) -> tuple[tuple[Array, Array], Any]:
    """The places of a tile with one column, [rows, 1]."""
    return placed(span, *indices(span.rows, 1))


def parts(v: Array, width: int) -> list[Array]:
    """`v[..., i::width]` for each i below `width`, a power of two.

    By halves, which a Triton kernel can take from registers without moving data.
    """
    if width == 1:
        return [v]
    pair = v.reshape(*v.shape[:-1], -1, 2)
    a, b = (parts(half.reshape(pair.shape[:-1]), width // 2) for half in jnp.split(pair, 2, -1))
    return [part for pair in zip(a, b, strict=True) for part in pair]


def joined(values: list[Array]) -> Array:
    """The inverse of `parts`."""
    if len(values) == 1:
        return values[0]
    pair = jnp.stack([joined(values[0::2]), joined(values[1::2])], axis=-1)
    return pair.reshape(*pair.shape[:-2], -1)


def flat(x: jax.Array) -> jax.Array:
    """`x` as rows of vectors."""
    return x.reshape(-1, x.shape[-1])
