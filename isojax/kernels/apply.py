"""A transform of vectors in one kernel."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from isojax.kernels._pallas import over_rows
from isojax.kernels.codecs import unsupported_array
from isojax.kernels.rotations import rotation, unsupported_transform
from isojax.kernels.tile import flat, vectors, wide, write
from isojax.transforms import Dense, Identity, Padded, Transform


def unsupported(t: Transform, x: Array) -> str:
    """The requirement that the arguments do not meet; empty if the kernel supports them."""
    if isinstance(t, Dense | Identity | Padded):
        return f"transforms other than Dense, Identity and Padded, got {type(t).__name__}."
    return unsupported_array(x) or unsupported_transform(t, x.dtype)


def kernel(t: Transform, x: Array, *, interpret: bool) -> Array:
    """`t.apply(x)`; each vector is read and written once."""
    turn = rotation(t, x.dtype, interpret)

    def body(whole: Any) -> Any:
        state = turn.prepare(whole)

        def step(span: Any, x: Array, outs: Any) -> None:
            y = turn.forward(state, wide(x)) * turn.gain
            write(outs[0], *turn.lanes.places(span, turn.size), y)

        return vectors(turn.lanes, turn.size), step

    rows = flat(x)
    shape = jax.ShapeDtypeStruct(rows.shape, x.dtype)
    out = over_rows(body, [rows], turn.operands, [shape], turn.lanes, "apply", interpret)
    return out[0].reshape(x.shape)
