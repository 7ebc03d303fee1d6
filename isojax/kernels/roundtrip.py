"""A round trip through a codec, in one kernel: norm, rotation, levels, inverse, norm."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax.codec import Codec
from isojax.kernels._pallas import over_rows
from isojax.kernels.choice import choose
from isojax.kernels.levels import (
    divided,
    pick,
    read_levels,
    search,
    shared_scale,
    unsupported_codebook,
)
from isojax.kernels.rotations import rotation, tuning, unsupported_transform
from isojax.kernels.tile import flat, read, write
from isojax.quantizers import StraightThrough, straight_through

DTYPES = ("float32", "bfloat16", "float16")


def roundtrip(
    codec: Codec, x: Float[Array, "*batch d"], implementation: str | None = None
) -> Float[Array, "*batch d"]:
    """`codec.roundtrip(x)`, with the gradient of `straight_through`.

    On a GPU each vector is read and written once. Computed in fp32 and returned in the dtype of
    `x`; a Dense transform of 16-bit vectors is rounded to their dtype, for tensor cores. Gradients
    are those of `Codec(transform, straight_through(quantizer))`, whatever the implementation: that
    of the identity for `x` where the transform is an isometry, and zero for the levels.

    Args:
        codec: see `unsupported` for those with a kernel; others go by `xla`.
        x: vectors of `codec.transform.dim` numbers.
        implementation: see `choice.choose`.

    Raises:
        ValueError: the kernel was asked for and does not support `codec` or `x`.
    """
    return _roundtrip(codec, x, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _roundtrip(codec: Codec, x: Array, implementation: str | None) -> Array:
    why = unsupported(codec, x)
    return choose(implementation, why, _kernel, lambda codec, x: codec.roundtrip(x), codec, x)


def _forward(codec: Codec, x: Array, implementation: str | None) -> tuple[Array, Any]:
    return _roundtrip(codec, x, implementation), (codec, x)


def _backward(_: str | None, saved: tuple[Codec, Array], g: Array) -> Any:
    def smooth(codec: Codec, x: Array) -> Array:
        quantizer = straight_through(codec.quantizer)
        return Codec(codec.transform, quantizer, codec.offset, codec.scale).roundtrip(x)

    return jax.vjp(smooth, *saved)[1](g)


_roundtrip.defvjp(_forward, _backward)


def unsupported(codec: Codec, x: Any) -> str:
    """What the kernels need of a codec and its vectors; empty if they have it."""
    if codec.offset is not None or codec.scale is not None:
        return "codecs without offset and scale."
    return (
        unsupported_array(x)
        or unsupported_transform(codec.transform, x.dtype)
        or unsupported_codebook(book_of(codec))
    )


def unsupported_array(x: Any) -> str:
    """What the kernels need of vectors; empty if they have it."""
    if str(x.dtype) in DTYPES and math.prod(x.shape):
        return ""
    return f"non-empty arrays of {', '.join(DTYPES)}, got {x.dtype} {x.shape}."


def book_of(codec: Codec) -> Any:
    """The quantizer of `codec`, without its straight-through gradient."""
    quantizer = codec.quantizer
    return quantizer.inner if isinstance(quantizer, StraightThrough) else quantizer


def _kernel(codec: Codec, x: Array, interpret: bool) -> Array:
    turn, book = rotation(codec.transform, x.dtype), book_of(codec)

    def body(whole: Any) -> Any:
        *operands, levels_ref = whole
        state, levels = turn.prepare(operands), read_levels(levels_ref)

        def step(span: Any, tiled: Any, outs: Any) -> None:
            places, mask = turn.lanes.places(span, turn.size)
            x = read(tiled[0], places, mask)
            y = turn.forward(state, x)
            scale = shared_scale(x if turn.isometry else y, book.normalize, turn.codes)
            value = pick(search(divided(y, scale), levels), levels)
            out = turn.backward(state, value)
            write(outs[0], places, mask, out if scale is None else out * scale)

        return step

    rows = flat(x)
    shape = jax.ShapeDtypeStruct(rows.shape, x.dtype)
    whole = (*turn.operands, jnp.asarray(book.levels))
    call = functools.partial(over_rows, name="roundtrip", interpret=interpret, **tuning(turn.lanes))
    return call(body, [rows], whole, [shape])[0].reshape(x.shape)
