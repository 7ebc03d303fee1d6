"""Packed codes and their scales from vectors, and vectors from them, each in one kernel."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax.codec import Codec
from isojax.kernels._pallas import over_rows
from isojax.kernels.bitwords import Words
from isojax.kernels.choice import choose
from isojax.kernels.levels import (
    bits_of,
    divided,
    index_of,
    pick,
    read_levels,
    search,
    shared_scale,
)
from isojax.kernels.rotations import Rotation, rotation, tuning
from isojax.kernels.roundtrip import book_of, unsupported
from isojax.kernels.tile import flat, read, rows_of, write
from isojax.quantizers import Packed
from isojax.quantizers.packing import packed_bytes

GIB2 = 1 << 31  # bytes


def pack(
    codec: Codec,
    x: Float[Array, "*batch d"],
    dtype: Any = jnp.float16,
    implementation: str | None = None,
) -> Packed:
    """`codec.quantizer.pack(codec.encode(x), dtype)`: codes at scales that are rounded afterwards.

    On a GPU each vector is read once, and its bytes are written. No gradient passes.

    Args:
        codec: see `roundtrip.unsupported` for those with a kernel; others go by `xla`.
        x: vectors of `codec.transform.dim` numbers.
        dtype: of the scales.
        implementation: see `choice.choose`.

    Raises:
        ValueError: the quantizer has no fixed number of bits, or the kernel was asked for and does
            not support the arguments.
    """

    def reference(codec: Codec, x: Array) -> Packed:
        return codec.quantizer.pack(codec.encode(x), dtype)

    return _pack(codec, x, dtype, implementation, reference, rounded=False)


def store(
    codec: Codec,
    x: Float[Array, "*batch d"],
    dtype: Any = jnp.float16,
    implementation: str | None = None,
) -> Packed:
    """`codec.store(x, dtype)`, as `pack` but with codes chosen at the rounded scales."""
    reference = functools.partial(Codec.store, dtype=dtype)
    return _pack(codec, x, dtype, implementation, reference, rounded=True)


def load(
    codec: Codec, packed: Packed, dtype: Any = jnp.float32, implementation: str | None = None
) -> Float[Array, "*batch d"]:
    """`codec.load(packed)` in `dtype`.

    On a GPU the bytes are read once, and each vector is written. Gradients are those of the
    reference: exact, to scales, levels and the transform.

    Args:
        codec: the one that `packed` comes from; see `pack`.
        packed: what `pack` or `store` returned.
        dtype: of the result.
        implementation: see `choice.choose`.

    Raises:
        ValueError: the kernel was asked for and does not support the arguments.
    """
    return _load(codec, packed, jnp.dtype(dtype), implementation)


def _pack(
    codec: Codec, x: Array, dtype: Any, implementation: Any, reference: Any, rounded: bool
) -> Packed:
    codec, x = jax.lax.stop_gradient((codec, x))
    why = unsupported(codec, x)
    if not why:
        words = _words(codec, rotation(codec.transform, x.dtype))
        rows = x.size // x.shape[-1]
        why = words.unsupported or _wraps(rows * packed_bytes(words.size, words.bits))
    kernel = functools.partial(_pack_kernel, dtype=jnp.dtype(dtype), rounded=rounded)
    return choose(implementation, why, kernel, reference, codec, x)


def _words(codec: Codec, turn: Rotation) -> Words:
    return Words(turn.lanes, book_of(codec).bits, turn.codes)


def _pack_kernel(codec: Codec, x: Array, *, dtype: Any, rounded: bool, interpret: bool) -> Packed:
    turn, book = rotation(codec.transform, x.dtype), book_of(codec)
    words, largest = _words(codec, turn), float(jnp.finfo(dtype).max)

    def body(whole: Any) -> Any:
        *operands, levels_ref = whole
        state, levels = turn.prepare(operands), read_levels(levels_ref)

        def step(span: Any, tiled: Any, outs: Any) -> None:
            v = read(tiled[0], *turn.lanes.places(span, turn.size))
            y = turn.forward(state, v)
            scale = shared_scale(v if turn.isometry else y, book.normalize, turn.codes)
            if scale is not None:
                kept = jnp.where(scale > largest, largest, scale).astype(dtype)
                write(outs[1], *rows_of(span), kept)
                scale = kept.astype(jnp.float32) if rounded else scale
            words.write(outs[0], index_of(search(divided(y, scale), levels)), span)

        return step

    rows, bits = flat(x), book.bits
    shapes = [(packed_bytes(turn.codes, bits), jnp.uint8)]
    shapes += [] if book.normalize == "none" else [(1, dtype)]
    outs = [jax.ShapeDtypeStruct((len(rows), n), dtype) for n, dtype in shapes]
    call = functools.partial(over_rows, name="store", interpret=interpret, **tuning(turn.lanes))
    made = call(body, [rows], (*turn.operands, book.levels), outs)
    data, *scale = (a.reshape(*x.shape[:-1], a.shape[-1]) for a in made)
    return Packed(data, scale[0] if scale else None, None, None, None, bits, turn.codes, False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _load(codec: Codec, packed: Packed, dtype: Any, implementation: str | None) -> Array:
    out = jax.ShapeDtypeStruct((*packed.data.shape[:-1], codec.transform.dim), dtype)
    why = unsupported_packed(packed) or unsupported(codec, out)
    if not why:
        words = _words(codec, rotation(codec.transform, dtype))
        why = words.unsupported or _unlike(packed, words)
    kernel = functools.partial(_load_kernel, dtype=dtype)
    reference = functools.partial(_loaded, dtype=dtype)
    return choose(implementation, why, kernel, reference, codec, packed)


def unsupported_packed(packed: Packed) -> str:
    """What the kernels need of packed codes; empty if they have it."""
    if any(a is not None for a in (packed.offset, packed.outliers, packed.tensor_scale)):
        return "packed codes with one scale a vector and no more."
    if packed.signed or packed.data.size == 0:
        return "non-empty packed codes without sign."
    return _wraps(packed.data.size)


def _wraps(size: int) -> str:
    """Why so many bytes cannot be: up to 4 GiB, JAX has Triton count them in signed 32 bits."""
    return f"codes of up to 2 GiB, or over 4, got {size} bytes." if GIB2 < size <= 2 * GIB2 else ""


def _unlike(packed: Packed, words: Words) -> str:
    if (packed.dim, packed.bits) == (words.size, words.bits):
        return ""
    codes = f"{packed.dim} of {packed.bits} bits"
    return f"codes of this codec, {words.size} of {words.bits} bits, got {codes}."


def _loaded(codec: Codec, packed: Packed, dtype: Any) -> Array:
    return codec.load(packed).astype(dtype)


def _forward(codec: Codec, packed: Packed, dtype: Any, implementation: str | None) -> Any:
    return _load(codec, packed, dtype, implementation), (codec, packed)


def _backward(dtype: Any, _: str | None, saved: Any, g: Array) -> Any:
    return jax.vjp(functools.partial(_loaded, dtype=dtype), *saved)[1](g)


_load.defvjp(_forward, _backward)


def _load_kernel(codec: Codec, packed: Packed, *, dtype: Any, interpret: bool) -> Array:
    turn, book = rotation(codec.transform, dtype), book_of(codec)
    words = _words(codec, turn)

    def body(whole: Any) -> Any:
        *operands, levels_ref = whole
        state, levels = turn.prepare(operands), read_levels(levels_ref)

        def step(span: Any, tiled: Any, outs: Any) -> None:
            bits = bits_of(words.read(tiled[0], span), book.bits)
            out = turn.backward(state, pick(bits, levels))
            if len(tiled) > 1:
                out *= read(tiled[1], *rows_of(span))
            write(outs[0], *turn.lanes.places(span, turn.size), out)

        return step

    tiled = [flat(packed.data)] + ([] if packed.scale is None else [flat(packed.scale)])
    shape = jax.ShapeDtypeStruct((len(tiled[0]), turn.size), dtype)
    call = functools.partial(over_rows, name="load", interpret=interpret, **tuning(turn.lanes))
    made = call(body, tiled, (*turn.operands, book.levels), [shape])[0]
    return made.reshape(*packed.data.shape[:-1], turn.size)
