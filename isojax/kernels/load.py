"""Vectors from packed codes in one kernel."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from isojax.codec import Codec
from isojax.kernels._pallas import over_rows
from isojax.kernels.codecs import (
    book_of,
    levels_of,
    unsupported_codec,
    unsupported_packed,
    words_of,
)
from isojax.kernels.levels import Levels
from isojax.kernels.rotations import rotation, scales
from isojax.kernels.tile import flat, wide, write
from isojax.quantizers import Packed
from isojax.transforms import identity


def unsupported(codec: Codec, packed: Packed, *, dtype: Any, rotated: bool) -> str:
    """The requirement that the arguments do not meet; empty if the kernel supports them."""
    codec = _reader(codec, rotated)
    out = jax.ShapeDtypeStruct((*packed.data.shape[:-1], codec.transform.dim), dtype)
    return unsupported_codec(codec, out) or unsupported_packed(packed, words_of(codec, dtype))


def kernel(codec: Codec, packed: Packed, *, dtype: Any, rotated: bool, interpret: bool) -> Array:
    """`codec.load(packed, dtype)`, or `load_rotated`: bytes are read and vectors written once."""
    codec = _reader(codec, rotated)
    turn, book = rotation(codec.transform, dtype, interpret), book_of(codec)
    words = words_of(codec, dtype)

    def body(whole: Any) -> Any:
        *operands, levels_ref = whole
        state, levels = turn.prepare(operands), Levels.read(levels_ref, book.symmetric)

        def step(span: Any, loaded: Any, outs: Any) -> None:
            found, scale = loaded
            out = turn.backward(state, levels.at(words.index(found, span)))
            out = out * scales(None if scale is None else wide(scale), turn.gain)[1]
            write(outs[0], *turn.lanes.places(span, turn.size), out)

        return words.load, step

    tiled = [flat(packed.data)] + ([] if packed.scale is None else [flat(packed.scale)])
    shape = jax.ShapeDtypeStruct((len(tiled[0]), turn.size), dtype)
    whole = (*turn.operands, levels_of(codec))
    made = over_rows(body, tiled, whole, [shape], turn.lanes, "load", interpret)
    return made[0].reshape(*packed.data.shape[:-1], turn.size)


def _reader(codec: Codec, rotated: bool) -> Codec:
    """The codec to load with: only the quantizer if `rotated`."""
    return Codec(identity(codec.transform.out_dim), codec.quantizer) if rotated else codec
