"""The use of Pallas by the Triton kernels, so that a change of backend changes only this file.

A kernel processes the rows of its operands in tiles. Compiler parameters are always passed, since
the default backend of `pallas_call` depends on the version of JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array

load, store = plt.load, plt.store

MOST_TILES = 64  # per program, one after the other, so that shared values are prepared once


class Span(NamedTuple):
    """Rows of a tile, in the block of its program.

    Attributes:
        rows: their number, a power of two.
        start: index of the first row.
        live: number of rows of the block that exist, or None if all rows of all blocks exist.
    """

    rows: int
    start: Any
    live: Any


def over_rows(
    body: Callable[..., tuple[Callable[..., Any], Callable[..., None]]],
    tiled: Sequence[Array],
    whole: Sequence[Array],
    outs: Sequence[jax.ShapeDtypeStruct],
    lanes: Any,
    name: str,
    interpret: bool,
) -> Sequence[Array]:
    """Run a kernel on tiles of rows.

    Args:
        body: `body(whole_refs)` prepares the values that all tiles share and returns two functions:
            `load(span, tiled_refs)` reads a tile, before the previous one is processed, and
            `step(span, loaded, out_refs)` computes its results. Both must mask the rows that do not
            exist according to `span`.
        tiled: arrays [rows, n], read tile by tile.
        whole: arrays passed to `body` whole.
        outs: shapes [rows, m] of the results.
        lanes: layout of vectors in a tile, see `tile.Lanes`: its rows, a power of two, its warps,
            and the programs to divide tiles among.
        name: of the kernel, in profiles after `isojax_`.
        interpret: run by the interpreter of Pallas, on any platform.
    """
    tiled, whole, axes = _shared_axes(tiled, whole)
    rows = tiled[0].shape[0]
    block_rows = lanes.rows
    tiles = _tiles(rows, block_rows, lanes.programs)
    own = tiles * block_rows
    ends = len(tiled), len(tiled) + len(whole)

    def kernel(*refs: Any) -> None:
        load, step = body(refs[ends[0] : ends[1]])
        live = rows - pl.program_id(0) * own if rows % own else None

        def loaded(i: Any) -> Any:
            return load(Span(block_rows, i * block_rows, live), refs[: ends[0]])

        def tile(i: Any, now: Any) -> Any:
            following = loaded(jnp.minimum(i + 1, tiles - 1))  # is under way while `now` is used
            step(Span(block_rows, i * block_rows, live), now, refs[ends[1] :])
            return following

        if tiles == 1:
            step(Span(block_rows, 0, live), loaded(0), refs[ends[1] :])
        else:
            lax.fori_loop(0, tiles, tile, loaded(0))

    def rows_of(a: Any) -> pl.BlockSpec:
        return pl.BlockSpec((own, a.shape[1]), lambda i: (i, 0))

    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, own),),
        in_specs=[*map(rows_of, tiled), *(pl.BlockSpec() for _ in whole)],
        out_specs=[*map(rows_of, outs)],
        out_shape=[
            jax.ShapeDtypeStruct(out.shape, out.dtype, manual_axis_type=axes) for out in outs
        ],
        compiler_params=plt.CompilerParams(num_warps=lanes.warps, num_stages=1),
        interpret=interpret,
        name=f"isojax_{name}",
    )(*tiled, *whole)


def _shared_axes(tiled: Sequence[Array], whole: Sequence[Array]) -> tuple[Any, Any, Any]:
    """The operands made varying, under `shard_map`, over all axes over which any of them varies."""
    each = [jax.typeof(a).manual_axis_type.varying for a in (*tiled, *whole)]
    axes = frozenset().union(*each)

    def cast(a: Array, own: frozenset[str]) -> Array:
        return lax.pcast(a, tuple(axes - own), to="varying") if axes - own else a

    cast_all = [cast(a, own) for a, own in zip((*tiled, *whole), each, strict=True)]
    kind = jax.typeof(cast_all[0]).manual_axis_type
    return cast_all[: len(tiled)], cast_all[len(tiled) :], kind


def _tiles(rows: int, block_rows: int, programs: int) -> int:
    """Tiles per program: more of them, a power of two, as long as enough programs remain."""
    tiles = 1
    while tiles < MOST_TILES and rows >= 2 * tiles * block_rows * programs:
        tiles *= 2
    return tiles


def fma(a: Any, b: Any, c: Any, interpret: bool) -> Array:
    """`a * b + c` in fp32 as one instruction; plain JAX lowers to two, which ptxas keeps."""
    if interpret:
        return a * b + c
    return _assembly("fma.rn.f32 $0, $1, $2, $3;", a, b, c)


def saturated(a: Any, b: Any, c: Any, interpret: bool) -> Array:
    """`a * b + c`, clipped to [0, 1]; NaN gives 0."""
    if interpret:
        return jnp.where(a * b + c > 0, jnp.minimum(a * b + c, 1), 0)
    return _assembly("fma.rn.sat.f32 $0, $1, $2, $3;", a, b, c)


def whole(v: Array, interpret: bool) -> Array:
    """A whole number from 0 to 255 as int32: the last bits of `v + 2^23`, without a conversion."""
    if interpret:
        return v.astype(jnp.int32)
    return lax.bitcast_convert_type(v + 2.0**23, jnp.int32) & 255


def _assembly(code: str, *args: Any) -> Array:
    shape = jnp.broadcast_shapes(*map(jnp.shape, args))
    each = [
        jnp.full(shape, a, jnp.float32) if isinstance(a, float) else jnp.broadcast_to(a, shape)
        for a in args
    ]
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    (y,) = plt.elementwise_inline_asm(
        code, args=each, constraints="=f,f,f,f", pack=1, result_shape_dtypes=[out]
    )
    return y


def product(a: Array, b: Array) -> Array:
    """`a @ b` on tensor cores, summed in fp32."""
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def dot(a: Array, terms: Sequence[Array], order: int = 1) -> Array:
    """The product of `a` with the sum of `terms` on tensor cores, summed in fp32.

    `a` is also split into a sum of bf16 terms (for an order of 1, of their dtype), each the rounded
    rest of the ones before. Products of term i of `a` and term j are summed for i + j < `order`, so
    each order adds 8 bits with bf16.
    """
    y: Any = 0
    for i in range(order):
        part, a = _split(a) if i + 1 < order else (a.astype(terms[0].dtype), a)
        for b in terms[: order - i]:
            y += product(part, b)
    return y


def _split(v: Array) -> tuple[Array, Array]:
    """The leading bits of `v` as bf16, truncated instead of rounded, and the rest of `v`."""
    bits = lax.bitcast_convert_type(v, jnp.int32)
    rest = v - lax.bitcast_convert_type(bits & -(2**16), jnp.float32)
    high = lax.shift_right_logical(bits, 16).astype(jnp.int16)
    return lax.bitcast_convert_type(high, jnp.bfloat16), rest


def halves(v: Array) -> list[Array]:
    """Two bf16 terms with the sum `v`, to 16 bits."""
    high, rest = _split(v)
    return [high, rest.astype(jnp.bfloat16)]


def paired(v: Array) -> Array:
    """`halves` packed into int32, for a table."""
    high, low = (lax.bitcast_convert_type(h, jnp.uint16).astype(jnp.uint32) for h in halves(v))
    return lax.bitcast_convert_type(high << 16 | low, jnp.int32)


def unpaired(pair: Array) -> list[Array]:
    """The inverse of `paired`: the two terms."""
    both = (lax.shift_right_logical(pair, 16), pair)
    return [lax.bitcast_convert_type(h.astype(jnp.int16), jnp.bfloat16) for h in both]
