"""Transforms inside kernels: of a tile [rows, lanes], in both directions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from isojax._core.implementation import on_hopper
from isojax.kernels._pallas import dot, fma
from isojax.kernels.tile import ONE, Lanes, indices, joined, parts, read
from isojax.transforms import (
    Dense,
    Hadamard,
    Identity,
    Padded,
    Planar,
    Quaternion,
    Rotor,
    Transform,
)
from isojax.transforms.paley import decompose, hadamard_matrix
from isojax.transforms.quaternion import PRODUCT as QUATERNION
from isojax.transforms.quaternion import SANDWICH

LANES = (16, 4096)  # fewest and most per vector, before registers spill
MOST_DENSE = (128, 64)  # for 16 and for 32 bits: the limit of shared memory
MOST_BASE = 28  # largest factor of a Hadamard matrix that is not a power of two
PRODUCT = {"min_rows": 64, "min_warps": 4, "programs": 512}  # tiles of products on tensor cores

Turn = Callable[[Any, Array], Array]  # (state, tile) -> tile


@dataclasses.dataclass(frozen=True)
class Rotation:
    """A transform in a kernel.

    Attributes:
        lanes: layout of its vectors in a tile.
        size: elements per vector, before.
        codes: elements per vector, after.
        operands: arrays that the kernel needs whole.
        prepare: computes the state of `forward` and `backward` from their refs.
        forward: the transform of a tile of vectors, divided by `gain`.
        backward: the inverse, divided by `gain`.
        gain: a common factor, applied to the scales instead.
        isometry: whether norms may be taken before it: a sum over the lanes of its result would
            pass through shared memory. Not for Dense ones, which are rounded.
    """

    lanes: Lanes
    size: int
    codes: int
    operands: tuple[Array, ...]
    prepare: Callable[[Any], Any]
    forward: Turn
    backward: Turn
    gain: float = 1.0
    isometry: bool = True


class Member(NamedTuple):
    """A transform that has a kernel.

    Attributes:
        lanes: `(transform, dtype) -> Lanes`: layout of vectors in `dtype` in a tile.
        make: `(transform, lanes, dtype, interpret) -> Rotation`.
        unsupported: `(transform, dtype) -> str`: the requirement not met, empty if supported.
        padded: whether it may be inside a `Padded`.
    """

    lanes: Callable[[Any, Any], Lanes]
    make: Callable[[Any, Lanes, Any, bool], Rotation]
    unsupported: Callable[[Any, Any], str] = lambda t, dtype: ""
    padded: bool = False


_MEMBERS: dict[type, Member] = {}


def register(kind: type, member: Member) -> None:
    """Register a kernel for transforms of class `kind`; those without one run in plain JAX."""
    _MEMBERS[kind] = member


def unsupported_transform(t: Transform, dtype: Any) -> str:
    """The requirement that `t` does not meet for vectors in `dtype`; empty if supported."""
    inner = _inner(t)
    member = _MEMBERS.get(type(inner))
    if member is None or (t is not inner and not member.padded):
        names = ", ".join(kind.__name__ for kind in _MEMBERS)
        return f"transforms of {names}, got {type(t).__name__}."
    if why := member.unsupported(inner, dtype):
        return why
    count = member.lanes(inner, dtype).count
    if not LANES[0] <= count <= LANES[1]:
        return f"vectors of {LANES[0] // 2 + 1} to {LANES[1]} lanes, got {count} for {inner.dim}."
    return ""


def rotation(t: Transform, dtype: Any, interpret: bool) -> Rotation:
    """The rotation of a supported transform `t`, for vectors in `dtype`."""
    inner = _inner(t)
    turn = _MEMBERS[type(inner)].make(inner, lanes_of(t, dtype), dtype, interpret)
    return dataclasses.replace(turn, size=t.dim)


def lanes_of(t: Transform, dtype: Any) -> Lanes:
    """The layout of vectors of a supported transform in a tile."""
    inner = _inner(t)
    return _MEMBERS[type(inner)].lanes(inner, dtype)


def _inner(t: Transform) -> Transform:
    return t.inner if isinstance(t, Padded) and not t.cropped else t


def scales(scale: Array | None, gain: float) -> tuple[Any, Any]:
    """The factors of borders and of levels for a scale; see `Rotation.gain`."""
    if gain == 1:
        return (1, 1) if scale is None else (scale, scale)
    one = jnp.float32(1) if scale is None else scale
    return one * (1 / gain), one * gain


def _neighbours(t: Transform, dtype: Any) -> Lanes:
    """One lane per element; the same bytes per thread for all dtypes."""
    size = jnp.dtype(dtype).itemsize
    return Lanes(t.dim, elements=64 // size if t.dim <= 1024 else 16)


def _exact(dtype: Any) -> bool:
    """Whether products of vectors in `dtype` with +-1 are exact on tensor cores, in few terms."""
    return jnp.dtype(dtype).itemsize == 2


def _base(block: int, dtype: Any) -> int:
    """The order of the last factor of a Hadamard matrix, a product; the others are butterflies.

    For 16 bits it is the largest that shared memory holds, else the smallest possible.
    """
    power, base = decompose(block)
    most = MOST_DENSE[0] if base == 1 else MOST_DENSE[1]  # registers spill where lanes have gaps
    while _exact(dtype) and power > 1 and 2 * base <= most:
        power, base = power // 2, 2 * base
    return base


def _blocks(inner: Any, lanes: Lanes, dtype: Any, interpret: bool) -> Rotation:
    """A rotation of each block; the kernel computes matrices from quaternions or phasors."""
    width = 2 if isinstance(inner, Planar) else 4
    if isinstance(inner, Planar):
        operands = (inner.phasor,)
    elif isinstance(inner, Rotor):
        operands = (inner.spinor,)
    else:
        operands = (inner.left,) if inner.right is None else (inner.left, inner.right)

    def prepare(refs: Any) -> Any:
        sides = [_unit(ref, lanes.count // width) for ref in refs]
        if isinstance(inner, Planar):
            c, s = sides[0]
            return [[c, s], [-s, c]]
        if isinstance(inner, Rotor):
            return [row[1:] for row in _matrices(SANDWICH, sides[0], sides[0])[1:]]
        if inner.right is None:
            one = [jnp.float32(1)]
            return _matrices(np.moveaxis(QUATERNION, 0, 2)[..., None], sides[0], one)
        return _matrices(SANDWICH, *sides)

    def product(x: list[Array], m: list[list[Any]]) -> list[Any]:
        """The sums sum_j x[j] m[j][i]."""
        columns = []
        for i in range(len(m)):
            y = x[0] * m[0][i]
            for j in range(1, len(m)):
                y = fma(x[j], m[j][i], y, interpret)
            columns.append(y)
        return columns

    def forward(m: Any, v: Array) -> Array:
        x = parts(v, width)
        return _joined(product(x, m), x)

    def backward(m: Any, v: Array) -> Array:
        y = parts(v, width)
        return _joined(product(y, [list(row) for row in zip(*m, strict=True)]), y)

    return Rotation(lanes, inner.dim, inner.dim, operands, prepare, forward, backward)


def _joined(values: list[Any], others: list[Array]) -> Array:
    """`joined`, with zeros in the unused lane of a block of three."""
    return joined([*values, *(jnp.zeros_like(v) for v in others[len(values) :])])


def _unit(ref: Any, blocks: int) -> list[Array]:
    """The components, each [1, blocks], of u / |u| for the rows u of `ref`; 1 for missing rows."""
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


def _dense(t: Dense, lanes: Lanes, dtype: Any, interpret: bool) -> Rotation:
    """A product on tensor cores: in the dtype of 16-bit vectors, else in bf16 terms to 16 bits."""
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

    operands = (t.entries,)
    return Rotation(lanes, t.dim, t.dim, operands, prepare, forward, backward, isometry=False)


def _square(ref: Any, lanes: int) -> Array:
    """A matrix, padded with zeros."""
    size = ref.shape[0]
    row, column = indices(lanes, lanes)
    mask = None if size == lanes else (row < size) & (column < size)
    return read(ref, (row, column), mask)


def _hadamard(t: Hadamard, lanes: Lanes, dtype: Any, interpret: bool) -> Rotation:
    """A product with the last factor, if there is one, and butterflies for the others.

    The entries of the factor are exact in bf16, and vectors are split into enough bf16 terms to be
    exact: one for bf16, two for fp16, three for fp32. The way back has the precision of `dtype`.
    """
    base, width = lanes.pitch, lanes.width
    power = t.block // base
    factor = () if base == 1 else (jnp.asarray(hadamard_matrix(base), jnp.float32),)
    terms = {"bfloat16": 1, "float16": 2}.get(str(jnp.dtype(dtype)), 3)

    def prepare(refs: Any) -> Any:
        places, mask = lanes.places(ONE, t.dim)
        signs = read(refs[0], places, mask)
        return signs, (_square(refs[1], width).astype(jnp.bfloat16) if base > 1 else None)

    def product(factor: Any, v: Array, transposed: bool, order: int) -> Array:
        rows = v.shape[0] * lanes.count // (power * width)
        if factor is not None:
            v = dot(v.reshape(-1, width), [factor.T if transposed else factor], order)
        if power > 1:
            if factor is not None:
                v = v.reshape(rows, power, width).transpose(0, 2, 1)
            v = butterflies(v.reshape(rows, power * width), power)
        return v.reshape(-1, lanes.count)

    def turn(state: Any, v: Array, transposed: bool, order: int) -> Array:
        signs, factor = state
        if transposed:
            return product(factor, v, True, order) * signs
        return product(factor, v * signs, False, order)

    def forward(state: Any, v: Array) -> Array:
        return turn(state, v, t.transposed, terms)

    def backward(state: Any, v: Array) -> Array:
        return turn(state, v, not t.transposed, max(terms, 2))

    operands = (t.signs.reshape(1, -1), *factor)
    gain = 1 / math.sqrt(t.block)
    return Rotation(lanes, t.dim, t.dim, operands, prepare, forward, backward, gain)


def butterflies(v: Array, order: int) -> Array:
    """The Sylvester matrix of `order` on the last bits of the lane index, which become first.

    One bit at a time, as in Pease (1968): sum and difference of neighbours, then all sums before
    all differences. After all bits the lanes are in their original order.
    """
    rows, count = v.shape
    for _ in range(order.bit_length() - 1):
        a, b = parts(v, 2)
        v = jnp.stack([a + b, a - b], axis=-1).transpose(0, 2, 1).reshape(rows, count)
    return v


def _identity(t: Identity, lanes: Lanes, dtype: Any, interpret: bool) -> Rotation:
    return Rotation(lanes, t.dim, t.dim, (), lambda refs: None, _same, _same)


def _same(state: Any, v: Array) -> Array:
    return v


def _hadamard_lanes(t: Hadamard, dtype: Any) -> Lanes:
    """Groups of the lanes of one product."""
    base = _base(t.block, dtype)
    if base == 1:
        return _neighbours(t, dtype)
    lanes = Lanes(t.dim // base, base)
    if _exact(dtype):
        least = PRODUCT["min_rows"] if on_hopper() else 32  # registers spill elsewhere
        rows = least * lanes.width // lanes.count
        return dataclasses.replace(lanes, **PRODUCT | {"min_rows": max(rows, 1)})
    return dataclasses.replace(lanes, min_rows=-(-16 * lanes.width // lanes.count))


def _unsupported_hadamard(t: Hadamard, dtype: Any) -> str:
    if decompose(t.block)[1] <= MOST_BASE:
        return ""
    return f"Hadamard matrices of 2^k times at most {MOST_BASE}, got {t.block}."


def _unsupported_dense(t: Dense, dtype: Any) -> str:
    most = MOST_DENSE[jnp.dtype(dtype).itemsize > 2]
    if t.dim <= most:
        return ""
    return f"a Dense transform up to dim {most} in {jnp.dtype(dtype)}, got {t.dim}."


for _kind in (Quaternion, Planar):
    register(_kind, Member(_neighbours, _blocks, padded=True))
register(Rotor, Member(lambda t, dtype: Lanes(t.dim // 3, 3), _blocks, padded=True))
register(Hadamard, Member(_hadamard_lanes, _hadamard, _unsupported_hadamard))
register(Dense, Member(lambda t, dtype: Lanes(t.dim, **PRODUCT), _dense, _unsupported_dense))
register(Identity, Member(_neighbours, _identity))
