"""Causal attention by blocks of queries, so that the logits of a long text are never all held."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BLOCK = 256
SECTIONS = 4


def over_queries(
    read: Callable[[Array, Array, int], Any],
    q: Float[Array, "n share t d"],
    slots: int,
    start: Any = 0,
) -> Any:
    """The results of `read` on blocks of at most `BLOCK` queries.

    Args:
        read: takes queries [n, share * block, d], their positions [share * block, 1] and the number
            of keys that they may read, an int. Positions go on beyond the last query, to fill the
            last block.
        q: queries; those along the second axis share their keys. One batch axis, and queries that
            share keys stacked in rows: any other order makes XLA's products on a CPU up to ten
            times slower.
        slots: number of keys.
        start: position of the first query. Where it is known to be 0, each quarter of the blocks
            reads no keys that come after it.

    Returns:
        The results, with a leading axis of blocks.
    """
    n, share, tokens, dim = q.shape
    count = -(-tokens // BLOCK)
    block = -(-tokens // count)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, count * block - tokens), (0, 0)))
    q = q.reshape(n, share, count, block, dim).transpose(2, 0, 1, 3, 4)
    rows, first = q.reshape(count, n, share * block, dim), start + block * jnp.arange(count)

    def one(block_of: tuple[Array, Array], seen: int) -> Any:
        rows, first = block_of
        return read(rows, jnp.tile(first + jnp.arange(block), share)[:, None], seen)

    prompt = isinstance(start, int) and start == 0
    cuts = sorted({count * i // SECTIONS for i in range(SECTIONS + 1)}) if prompt else [0, count]
    found = [
        jax.lax.map(
            functools.partial(one, seen=min(end * block, slots) if prompt else slots),
            (rows[begin:end], first[begin:end]),
        )
        for begin, end in itertools.pairwise(cuts)
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
