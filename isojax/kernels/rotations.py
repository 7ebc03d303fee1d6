"""Transforms as kernels apply them: to a tile [rows, lanes], in both directions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from isojax.kernels._pallas import dot
from isojax.kernels.tile import ONE, Lanes, indices, joined, parts, read
from isojax.transforms import Dense, Hadamard, Padded, Planar, Quaternion, Rotor, Transform
from isojax.transforms.paley import decompose, paley
from isojax.transforms.quaternion import PRODUCT, SANDWICH

LANES = (16, 4096)  # fewest and most a vector, before registers spill
MOST_DENSE = (128, 64)  # of 16 bits and of 32: what shared memory holds
MOST_BASE = 28  # largest factor of a Hadamard matrix that is no power of two

Turn = Callable[[Any, Array], Array]  # (state, tile) -> tile
Turns = tuple[tuple[Array, ...], Callable[[Any], Any], Turn, Turn]


@dataclasses.dataclass(frozen=True)
class Rotation:
    """A transform in a kernel.

    Attributes:
        lanes: how its vectors lie in a tile.
        size: numbers a vector, before.
        codes: numbers a vector, after.
        isometry: whether norms are taken before it, as it keeps them: a sum over the lanes of its
            result would send that through shared memory. A Dense one is rounded, and keeps them
            less well.
        operands: arrays that the kernel needs whole.
        prepare: makes of their refs what the two turns take.
        forward: the transform of a tile.
        backward: its inverse.
    """

    lanes: Lanes
    size: int
    codes: int
    isometry: bool
    operands: tuple[Array, ...]
    prepare: Callable[[Any], Any]
    forward: Turn
    backward: Turn


def unsupported_transform(t: Transform, dtype: Any) -> str:
    """What a transform of vectors in `dtype` must be for the kernels; empty if `t` is."""
    inner = t.inner if isinstance(t, Padded) and not t.transposed else t
    blocks = isinstance(inner, (Quaternion, Planar, Rotor))
    if not blocks and (t is not inner or not isinstance(inner, (Hadamard, Dense))):
        return (
            "a Quaternion, Planar or Rotor, which may be padded, a Hadamard or a Dense as "
            f"transform, got {type(t).__name__}."
        )
    most = MOST_DENSE[jnp.dtype(dtype).itemsize > 2]
    if isinstance(inner, Dense) and inner.dim > most:
        return f"a Dense transform up to dim {most} in {jnp.dtype(dtype)}, got {inner.dim}."
    if isinstance(inner, Hadamard) and decompose(inner.block)[1] > MOST_BASE:
        return f"Hadamard matrices of 2^k times at most {MOST_BASE}, got {inner.block}."
    if not LANES[0] <= _lanes(inner).count <= LANES[1]:
        count = _lanes(inner).count
        return f"vectors of {LANES[0] // 2 + 1} to {LANES[1]} lanes, got {count} for {inner.dim}."
    return ""


def rotation(t: Transform, dtype: Any) -> Rotation:
    """A supported transform `t`, for vectors that come in `dtype`."""
    inner = t.inner if isinstance(t, Padded) else t
    size, lanes = t.dim, _lanes(inner)
    if isinstance(inner, Hadamard):
        turns = _hadamard(inner, lanes)
    elif isinstance(inner, Dense):
        turns = _dense(inner, lanes, dtype)
    else:
        turns = _blocks(inner, lanes)
    return Rotation(lanes, size, inner.dim, not isinstance(inner, Dense), *turns)


def _lanes(t: Transform) -> Lanes:
    if isinstance(t, Rotor):
        return Lanes(t.dim // 3, 3)
    if isinstance(t, Dense):
        return Lanes(t.dim, min_rows=64, min_warps=8)
    if not isinstance(t, Hadamard):
        return Lanes(t.dim)
    base = decompose(t.block)[1]
    lanes = Lanes(t.dim // base, base)
    least = -(-16 * lanes.width // lanes.count) if base > 1 else 1  # a product takes 16 rows
    return dataclasses.replace(lanes, min_rows=least)


def _blocks(t: Any, lanes: Lanes) -> Turns:
    """A rotation of each block: its matrices come of quaternions or phasors in the kernel."""
    width = 2 if isinstance(t, Planar) else 4
    if isinstance(t, Planar):
        operands = (t.phasor,)
    elif isinstance(t, Rotor):
        operands = (t.spinor,)
    else:
        operands = (t.left,) if t.right is None else (t.left, t.right)

    def prepare(refs: Any) -> Any:
        sides = [_unit(ref, lanes.count // width) for ref in refs]
        if isinstance(t, Planar):
            c, s = sides[0]
            return [[c, s], [-s, c]]
        if isinstance(t, Rotor):
            return [row[1:] for row in _matrices(SANDWICH, sides[0], sides[0])[1:]]
        if t.right is None:
            return _matrices(np.moveaxis(PRODUCT, 0, 2)[..., None], sides[0], [jnp.float32(1)])
        return _matrices(SANDWICH, *sides)

    def forward(m: Any, v: Array) -> Array:
        x = parts(v, width)
        return _joined([sum(x[j] * m[j][i] for j in range(len(m))) for i in range(len(m))], x)

    def backward(m: Any, v: Array) -> Array:
        y = parts(v, width)
        return _joined([sum(y[i] * m[j][i] for i in range(len(m))) for j in range(len(m))], y)

    return operands, prepare, forward, backward


def _joined(values: list[Any], others: list[Array]) -> Array:
    """`joined`, with zeros for the lane that a block of three leaves over."""
    return joined([*values, *(jnp.zeros_like(v) for v in others[len(values) :])])


def _unit(ref: Any, blocks: int) -> list[Array]:
    """The components, each [1, blocks], of u / |u| for the rows u of `ref`; 1 for rows it lacks."""
    number, size = ref.shape
    _, block = indices(1, blocks)
    mask = None if number == blocks else block < number
    u = [read(ref, (block, jnp.full_like(block, i)), mask, float(i == 0)) for i in range(size)]
    square = sum(c * c for c in u)
    zero = square == 0
    inverse = 1 / jnp.sqrt(jnp.where(zero, 1, square))
    return [jnp.where(zero, float(i == 0), c * inverse) for i, c in enumerate(u)]


def _matrices(table: np.ndarray, left: list[Array], right: list[Array]) -> list[list[Any]]:
    """m[j][i] = sum over a, b of table[j, i, a, b] left[a] right[b], without the zeros."""
    pairs = [[a * b for b in right] for a in left]
    size = table.shape[0]
    return [
        [
            sum(float(c) * pairs[a][b] for (a, b), c in np.ndenumerate(table[j, i]) if c)
            for i in range(size)
        ]
        for j in range(size)
    ]


def _dense(t: Dense, lanes: Lanes, dtype: Any) -> Turns:
    """A product on tensor cores: in 16 bits where vectors have them, else with 16 bits of bf16."""
    half = jnp.dtype(dtype).itemsize == 2
    order = 1 if half else 2

    def prepare(refs: Any) -> Any:
        m = _square(refs[0], lanes.count)
        if half:
            return [m.astype(dtype)]
        high = m.astype(jnp.bfloat16)
        return [high, (m - high.astype(m.dtype)).astype(jnp.bfloat16)]

    def forward(terms: Any, v: Array) -> Array:
        return dot(v, terms, order)

    def backward(terms: Any, v: Array) -> Array:
        return dot(v, [m.T for m in terms], order)

    return (t.entries,), prepare, forward, backward


def _square(ref: Any, lanes: int) -> Array:
    """A matrix, filled up with zeros."""
    size = ref.shape[0]
    row, column = indices(lanes, lanes)
    mask = None if size == lanes else (row < size) & (column < size)
    return read(ref, (row, column), mask)


def _hadamard(t: Hadamard, lanes: Lanes) -> Turns:
    """Butterflies for the power of two, after a product with the other factor if there is one."""
    power, base = decompose(t.block)
    width = lanes.width
    factor = () if base == 1 else (jnp.asarray(paley(base), jnp.float32),)

    def prepare(refs: Any) -> Any:
        places, mask = lanes.places(ONE, t.dim)
        signs = read(refs[0], places, mask)
        return signs, (_square(refs[1], width).astype(jnp.bfloat16) if base > 1 else None)

    def product(factor: Any, v: Array, transposed: bool) -> Array:
        rows = v.shape[0] * lanes.count // (power * width)
        if factor is not None:
            v = dot(v.reshape(-1, width), [factor.T if transposed else factor], 3)  # all 24 bits
            v = v.reshape(rows, power, width).transpose(0, 2, 1)
        v = butterflies(v.reshape(rows, power * width), power)
        return v.reshape(-1, lanes.count) * (1 / math.sqrt(t.block))

    def forward(state: Any, v: Array) -> Array:
        signs, factor = state
        return (
            product(factor, v, True) * signs if t.transposed else product(factor, v * signs, False)
        )

    def backward(state: Any, v: Array) -> Array:
        signs, factor = state
        return (
            product(factor, v * signs, False) if t.transposed else product(factor, v, True) * signs
        )

    return (t.signs.reshape(1, -1), *factor), prepare, forward, backward


def butterflies(v: Array, order: int) -> Array:
    """The Sylvester matrix of `order` on the last bits of the lanes of `v`, which become first.

    One bit at a time, as in Pease (1968): sum and difference of neighbours, then all sums before
    all differences. After all bits of the lanes they are in their places again.
    """
    rows, count = v.shape
    for _ in range(order.bit_length() - 1):
        a, b = parts(v, 2)
        v = jnp.stack([a + b, a - b], axis=-1).transpose(0, 2, 1).reshape(rows, count)
    return v


def tuning(lanes: Lanes) -> dict[str, int]:
    """Rows and warps a tile."""
    return {"block_rows": lanes.rows, "warps": lanes.warps}
