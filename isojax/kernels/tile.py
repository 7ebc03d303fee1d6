"""Where the numbers of a vector lie in the lanes of a tile [rows, lanes].

Values in a Triton kernel have lengths that are powers of two, vectors and blocks do not. So a tile
takes `width` lanes for every `pitch` numbers of memory, and masks what is in excess.
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
    """The lanes of vectors: lane `width * g + j` is number `pitch * g + j`, for j below `pitch`.

    Attributes:
        groups: groups of `pitch` numbers.
        pitch: numbers a group in memory.
        min_rows: rows that a tile must have at least.
        min_warps: warps that it must have at least.
        elements: numbers a thread.
        programs: among which many tiles are divided; enough to keep all cores at work several times
            over, fewer where what tiles share takes long to prepare.
    """

    groups: int
    pitch: int = 1
    min_rows: int = 1
    min_warps: int = 4
    elements: int = 16
    programs: int = 4096

    @property
    def width(self) -> int:
        """Lanes a group."""
        return power_of_two(self.pitch)

    @property
    def size(self) -> int:
        """Numbers in all groups."""
        return self.groups * self.pitch

    @property
    def count(self) -> int:
        """Lanes a vector."""
        return power_of_two(self.groups) * self.width

    @property
    def warps(self) -> int:
        """Warps a tile: the least, or as many as one row fills."""
        return min(max(self.count // (self.elements * THREADS), self.min_warps), 32)

    @property
    def rows(self) -> int:
        """Rows a tile: such that each thread holds `elements` numbers."""
        return max(self.min_rows, self.elements * THREADS * self.warps // self.count)

    def places(self, span: Span, size: int) -> tuple[tuple[Array, Array], Any]:
        """Row and column of every lane of a tile, and which of them are there; None if all are.

        Args:
            span: the rows of the tile.
            size: numbers a vector in memory, at most `size` of the lanes.
        """
        if self.pitch == self.width:
            row, column = indices(span.rows, self.count)
            return placed(span, row, column, [column < size] if size < self.count else [])
        # a group on an axis of its own: which of its lanes neighbour in memory is seen like this
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
    """Places in the block of a program, and the conjunction of `masks` and of rows that exist."""
    row = row if isinstance(span.start, int) and span.start == 0 else row + span.start
    both = [*masks] if span.live is None else [row < span.live, *masks]
    return (row, column), functools.reduce(operator.and_, both) if both else None


def read(ref: Any, places: tuple[Array, ...], mask: Any, other: float = 0.0) -> Array:
    """What `ref` holds there, in fp32 if floating; `other` where masked."""
    return wide(read_raw(ref, places, mask, other))


def read_raw(ref: Any, places: tuple[Array, ...], mask: Any, other: float = 0.0) -> Array:
    """The same in the dtype of `ref`, and in the shape of the places."""
    at = ref.at[places]
    return load(at) if mask is None else load(at, mask=mask, other=jnp.array(other, ref.dtype))


def wide(value: Array) -> Array:
    """A tile that `read_raw` gave, as [rows, lanes], in fp32 if floating."""
    value = value.reshape(value.shape[0], -1)
    return value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value


def vectors(lanes: Lanes, size: int) -> Callable[[Span, Sequence[Any]], Array]:
    """The `load` of `over_rows` for vectors of `size` numbers, the one tiled operand."""
    return lambda span, tiled: read_raw(tiled[0], *lanes.places(span, size))


def write(ref: Any, places: tuple[Array, ...], mask: Any, value: Array) -> None:
    """Put `value` [rows, lanes] there, in the dtype of `ref`."""
    store(ref.at[places], value.reshape(places[0].shape).astype(ref.dtype), mask=mask)


def gather(ref: Any, index: Array) -> Array:
    """`ref[index]` of a small table, which the caches hold."""
    return load(ref.at[index])


def rows_of(span: Span) -> tuple[tuple[Array, Array], Any]:
    """The places of the one column of a tile, [rows, 1]."""
    return placed(span, *indices(span.rows, 1))


def parts(v: Array, width: int) -> list[Array]:
    """`v[..., i::width]` for each i below `width`, a power of two.

    By halves, since these are what a Triton kernel can take out of registers as they lie.
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
