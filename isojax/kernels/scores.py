"""Attention scores of queries against packed keys, which are never written out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_last_axis
from isojax.codec import Codec
from isojax.kernels._pallas import over_rows
from isojax.kernels.bitwords import Words
from isojax.kernels.choice import choose
from isojax.kernels.levels import bits_of, pick, read_levels, unsupported_codebook
from isojax.kernels.packed import unsupported_packed
from isojax.kernels.rotations import LANES, tuning
from isojax.kernels.roundtrip import book_of
from isojax.kernels.tile import ONE, Lanes, read, rows_of, write
from isojax.quantizers import Packed

MOST_QUERIES = 16


def scores(
    codec: Codec,
    query: Float[Array, "*heads d"],
    keys: Packed,
    implementation: str | None = None,
) -> Float[Array, "*heads s"]:
    """`codec.rotate_query(query) @ codec.load_rotated(keys).T`, in fp32.

    The inner products of queries with stored keys, less `query @ codec.offset`, which the softmax
    does not see; not scaled by d^-1/2. On a GPU the bytes of the keys are read once for all
    queries. Gradients are those of the reference, exact.

    Args:
        codec: of any transform; for the kernel, of a `Codebook` with one scale a vector.
        query: one vector, or a few that read the same keys.
        keys: what `codec` made of keys [s, d].
        implementation: see `choice.choose`.

    Raises:
        ValueError: `keys` are not [s, n] or the kernel was asked for and does not support the
            arguments.
    """
    if keys.data.ndim != 2:
        raise ValueError(f"keys must be packed codes [s, n], got shape {keys.data.shape}.")
    check_last_axis("query", query, codec.transform.dim)
    return _scores(codec, query, keys, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scores(codec: Codec, query: Array, keys: Packed, implementation: str | None) -> Array:
    why = unsupported_packed(keys) or unsupported_codebook(book_of(codec))
    why = why or _unlike(codec, keys) or _words(keys).unsupported
    if not why and not LANES[0] <= _words(keys).lanes.count <= LANES[1]:
        why = f"keys of {LANES[0] // 2 + 1} to {LANES[1]} numbers, got {keys.dim}."
    number = query.size // query.shape[-1]
    if not why and not 1 <= number <= MOST_QUERIES:
        why = f"1 to {MOST_QUERIES} queries, got {number}."
    return choose(implementation, why, _kernel, _reference, codec, query, keys)


def _unlike(codec: Codec, keys: Packed) -> str:
    size, bits = codec.transform.out_dim, book_of(codec).bits
    if (keys.dim, keys.bits) == (size, bits):
        return ""
    return f"keys of this codec, {size} of {bits} bits, got {keys.dim} of {keys.bits}."


def _reference(codec: Codec, query: Array, keys: Packed) -> Array:
    q, k = codec.rotate_query(query), codec.load_rotated(keys)
    return jnp.einsum("...d,sd->...s", q, k, precision="highest")


def _forward(codec: Codec, query: Array, keys: Packed, implementation: str | None) -> Any:
    return _scores(codec, query, keys, implementation), (codec, query, keys)


def _backward(_: str | None, saved: Any, g: Array) -> Any:
    return jax.vjp(_reference, *saved)[1](g)


_scores.defvjp(_forward, _backward)


def _words(keys: Packed) -> Words:
    return Words(Lanes(keys.dim), int(keys.bits), keys.dim)


def _kernel(codec: Codec, query: Array, keys: Packed, *, interpret: bool) -> Array:
    words = _words(keys)
    queries = codec.rotate_query(query).reshape(-1, keys.dim).astype(jnp.float32)

    def body(whole: Any) -> Any:
        query_ref, levels_ref = whole
        levels = read_levels(levels_ref)
        (_, column), mask = words.lanes.places(ONE, keys.dim)
        rows = [
            read(query_ref, (jnp.full_like(column, i), column), mask) for i in range(len(queries))
        ]

        def step(span: Any, tiled: Any, outs: Any) -> None:
            value = pick(bits_of(words.read(tiled[0], span), words.bits), levels)
            (row, column), mask = rows_of(span)
            scale = read(tiled[1], (row, column), mask) if len(tiled) > 1 else 1
            for i, q in enumerate(rows):
                score = jnp.sum(value * q, axis=-1, keepdims=True) * scale
                write(outs[0], (row, column + i), mask, score)

        return step

    tiled = [keys.data] + ([] if keys.scale is None else [keys.scale])
    shape = jax.ShapeDtypeStruct((len(keys.data), len(queries)), jnp.float32)
    call = functools.partial(over_rows, name="scores", interpret=interpret, **tuning(words.lanes))
    made = call(body, tiled, (queries, book_of(codec).levels), [shape])[0]
    return made.T.reshape(*query.shape[:-1], len(keys.data))
