"""Inner products of queries with packed keys, which are never written out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from isojax.codec import Codec
from isojax.kernels._pallas import halves, over_rows, paired, product, unpaired
from isojax.kernels.bitwords import Words
from isojax.kernels.codecs import book_of, levels_of, unsupported_packed
from isojax.kernels.levels import unsupported_codebook
from isojax.kernels.rotations import LANES, PRODUCT
from isojax.kernels.tile import Lanes, gather, indices, placed, read, wide, write
from isojax.quantizers import Packed

MOST_QUERIES = 16


def unsupported(codec: Codec, query: Array, keys: Packed) -> str:
    """The requirement that the arguments do not meet; empty if the kernel supports them."""
    if why := unsupported_codebook(book_of(codec)):
        return why
    words, number = _words(codec), query.size // query.shape[-1]
    if not LANES[0] <= words.lanes.count <= LANES[1]:
        return f"keys of length {LANES[0] // 2 + 1} to {LANES[1]}, got {words.size}."
    if not 1 <= number <= MOST_QUERIES:
        return f"1 to {MOST_QUERIES} queries, got {number}."
    if keys.data.ndim != 2:
        return f"keys [s, n], got shape {keys.data.shape}."
    return unsupported_packed(keys, words)


def _words(codec: Codec) -> Words:
    size = codec.transform.out_dim
    return Words(Lanes(size, **PRODUCT), book_of(codec).bits, size)


def kernel(codec: Codec, query: Array, keys: Packed, *, interpret: bool) -> Array:
    """`codec.scores(query, keys)`: the bytes of the keys are read once for all queries.

    Products of levels with all queries on tensor cores, with 16 bits of each factor.
    """
    words, lanes = _words(codec), _words(codec).lanes
    queries = codec.rotate_query(query).reshape(-1, keys.dim).astype(jnp.float32)
    number = len(queries)

    def body(whole: Any) -> Any:
        query_ref, table_ref = whole
        lane, column = indices(lanes.count, MOST_QUERIES)
        q = read(query_ref, (column, lane), (column < number) & (lane < keys.dim))
        q_high, q_low = halves(q)

        def step(span: Any, loaded: Any, outs: Any) -> None:
            found, scale = loaded
            high, low = unpaired(gather(table_ref, words.index(found, span)))
            score = product(high, q_high) + product(high, q_low) + product(low, q_high)
            if scale is not None:
                score *= wide(scale)
            row, column = indices(*score.shape)
            write(outs[0], *placed(span, row, column, [column < number]), score)

        return words.load, step

    tiled = [keys.data] + ([] if keys.scale is None else [keys.scale])
    shape = jax.ShapeDtypeStruct((len(keys.data), number), jnp.float32)
    whole = (queries, paired(levels_of(codec)))
    made = over_rows(body, tiled, whole, [shape], lanes, "scores", interpret)
    return made[0].T.reshape(*query.shape[:-1], len(keys.data))
