"""A round trip through a codec in one kernel: norm, rotation, levels, inverse, norm."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array

from isojax.codec import Codec
from isojax.kernels._pallas import over_rows
from isojax.kernels.codecs import book_of, levels_of, unsupported_codec
from isojax.kernels.levels import Levels, shared_scale
from isojax.kernels.rotations import rotation, scales
from isojax.kernels.tile import flat, vectors, wide, write
from isojax.transforms import Dense


def unsupported(codec: Codec, x: Array) -> str:
    """The requirement that the arguments do not meet; empty if the kernel supports them."""
    return unsupported_codec(codec, x)


def kernel(codec: Codec, x: Array, *, interpret: bool) -> Array:
    """`codec.roundtrip(x)`; each vector is read and written once.

    A Dense transform of 16-bit vectors is rounded to their dtype, for tensor cores.
    """
    turn, book = rotation(codec.transform, x.dtype, interpret), book_of(codec)
    lanes = turn.lanes
    if book.bits > 3 and not isinstance(codec.transform, Dense):  # registers spill
        lanes = dataclasses.replace(lanes, min_rows=-(-lanes.min_rows // 2))

    def body(whole: Any) -> Any:
        *operands, levels_ref = whole
        state, levels = turn.prepare(operands), Levels.read(levels_ref, book.symmetric)

        def step(span: Any, x: Array, outs: Any) -> None:
            x = wide(x)
            y = turn.forward(state, x)
            scale = shared_scale(x if turn.isometry else y, book.normalize, turn.codes)
            y = levels.nearest(y, *scales(scale, turn.gain))
            write(outs[0], *turn.lanes.places(span, turn.size), turn.backward(state, y))

        return vectors(turn.lanes, turn.size), step

    rows = flat(x)
    shape = jax.ShapeDtypeStruct(rows.shape, x.dtype)
    whole = (*turn.operands, levels_of(codec))
    out = over_rows(body, [rows], whole, [shape], lanes, "roundtrip", interpret)
    return out[0].reshape(x.shape)
