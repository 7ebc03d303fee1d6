"""All that the Triton kernels take from Pallas, so that a change of backend is one of this file.

A kernel here goes over the rows of its operands in tiles; compiler parameters are always given,
since which backend a bare `pallas_call` means depends on the version of JAX.
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

PROGRAMS = 4096  # that keep all cores of a large GPU at work several times over
MOST_TILES = 8  # which one program takes in turn, so that what they share is prepared once


class Span(NamedTuple):
    """Rows of a tile, in the block of its program.

    Attributes:
        rows: how many, a power of two.
        start: the first.
        live: rows of the block that exist, or None where all of every block do.
    """

    rows: int
    start: Any
    live: Any


def over_rows(
    body: Callable[..., Callable[..., None]],
    tiled: Sequence[Array],
    whole: Sequence[Array],
    outs: Sequence[jax.ShapeDtypeStruct],
    *,
    name: str,
    block_rows: int,
    warps: int,
    interpret: bool,
) -> Sequence[Array]:
    """Run a kernel on tiles of `block_rows` rows.

    Args:
        body: `body(whole_refs)` prepares what all tiles share and returns
            `step(span, tiled_refs, out_refs)`, which is called for tile after tile and must mask
            the rows that `span` says do not exist.
        tiled: arrays [rows, n], of which a tile is read.
        whole: arrays that `body` gets whole.
        outs: shapes [rows, m] of the results.
        name: of the kernel, as profiles show it.
        block_rows: rows a tile, a power of two.
        warps: warps of 32 threads a tile.
        interpret: run by the interpreter of Pallas, on any platform.
    """
    tiled, whole, axes = _shared_axes(tiled, whole)
    rows = tiled[0].shape[0]
    tiles = _tiles(rows, block_rows)
    own = tiles * block_rows
    ends = len(tiled), len(tiled) + len(whole)

    def kernel(*refs: Any) -> None:
        step = body(refs[ends[0] : ends[1]])
        live = rows - pl.program_id(0) * own if rows % own else None

        def tile(i: Any, _: Any) -> None:
            step(Span(block_rows, i * block_rows, live), refs[: ends[0]], refs[ends[1] :])

        if tiles == 1:
            tile(0, None)
        else:
            lax.fori_loop(0, tiles, tile, None)

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
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name=f"isojax_{name}",
    )(*tiled, *whole)


def _shared_axes(tiled: Sequence[Array], whole: Sequence[Array]) -> tuple[Any, Any, Any]:
    """The operands made to differ, under `shard_map`, along all axes that one differs along."""
    each = [jax.typeof(a).manual_axis_type.varying for a in (*tiled, *whole)]
    axes = frozenset().union(*each)

    def cast(a: Array, own: frozenset[str]) -> Array:
        return lax.pcast(a, tuple(axes - own), to="varying") if axes - own else a

    cast_all = [cast(a, own) for a, own in zip((*tiled, *whole), each, strict=True)]
    kind = jax.typeof(cast_all[0]).manual_axis_type
    return cast_all[: len(tiled)], cast_all[len(tiled) :], kind


def _tiles(rows: int, block_rows: int) -> int:
    """Tiles a program: more of them, a power of two, where enough programs are left."""
    tiles = 1
    while tiles < MOST_TILES and rows >= 2 * tiles * block_rows * PROGRAMS:
        tiles *= 2
    return tiles


def dot(a: Array, terms: Sequence[Array], order: int = 1) -> Array:
    """The product of `a` with the sum of `terms` on tensor cores, summed in fp32.

    `a` is taken apart too, into terms of their dtype, each of what the ones before leave. Products
    of term i of `a` and term j count for i + j < `order`; so bf16 gives 8 bits an order.
    """
    y: Any = 0
    for i in range(order):
        part = a.astype(terms[0].dtype)
        for b in terms[: order - i]:
            y += jnp.dot(part, b, preferred_element_type=jnp.float32)
        a = a - part.astype(a.dtype)
    return y
