"""Packed codes and their scales from vectors in one kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from isojax.codec import Codec
from isojax.kernels._pallas import over_rows
from isojax.kernels.codecs import book_of, levels_of, unsupported_bytes, unsupported_codec, words_of
from isojax.kernels.levels import Levels, shared_scale
from isojax.kernels.rotations import rotation, scales
from isojax.kernels.tile import flat, rows_of, vectors, wide, write
from isojax.quantizers import Packed
from isojax.quantizers.packing import packed_bytes


def unsupported(codec: Codec, x: Array, *, dtype: Any) -> str:
    """The requirement that the arguments do not meet; empty if the kernel supports them."""
    del dtype
    if why := unsupported_codec(codec, x):
        return why
    words = words_of(codec, x.dtype)
    size = x.size // x.shape[-1] * packed_bytes(words.size, words.bits)
    return words.unsupported or unsupported_bytes(size)


def kernel(codec: Codec, x: Array, *, dtype: Any, interpret: bool) -> Packed:
    """`codec.store(x, dtype)`; each vector is read once, and its bytes are written."""
    turn, book = rotation(codec.transform, x.dtype, interpret), book_of(codec)
    words, largest = words_of(codec, x.dtype), float(jnp.finfo(dtype).max)
    lanes = turn.lanes
    if lanes.pitch == 1 and lanes.min_rows == 1:  # fewer threads wait for each other
        lanes = dataclasses.replace(lanes, min_warps=2)

    def body(whole: Any) -> Any:
        *operands, levels_ref = whole
        state, levels = turn.prepare(operands), Levels.read(levels_ref, book.symmetric)

        def step(span: Any, x: Array, outs: Any) -> None:
            v = wide(x)
            y = turn.forward(state, v)
            scale = shared_scale(v if turn.isometry else y, book.normalize, turn.codes)
            if scale is not None:
                held = jnp.where(scale < jnp.inf, largest, jnp.nan)  # as `stored` does
                kept = jnp.where(scale > largest, held, scale).astype(dtype)
                write(outs[1], *rows_of(span), kept)
                scale = kept.astype(jnp.float32)
            border = scales(scale, turn.gain)[0]
            if levels.symmetric and levels.full and words.dense:
                words.write_fields(outs[0], levels.fields(y, border, interpret), span, interpret)
            else:
                words.write(outs[0], levels.index(y, border), span)

        return vectors(turn.lanes, turn.size), step

    rows, bits = flat(x), book.bits
    shapes = [(packed_bytes(turn.codes, bits), jnp.uint8)]
    shapes += [] if book.normalize == "none" else [(1, dtype)]
    outs = [jax.ShapeDtypeStruct((len(rows), n), kind) for n, kind in shapes]
    whole = (*turn.operands, levels_of(codec))
    made = over_rows(body, [rows], whole, outs, lanes, "store", interpret)
    data, *scale = (a.reshape(*x.shape[:-1], a.shape[-1]) for a in made)
    return Packed(data, scale[0] if scale else None, None, None, None, bits, turn.codes, False)
