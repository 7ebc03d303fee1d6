"""The requirements of kernels on codecs, vectors and packed codes; empty messages if met."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Array

from isojax.codec import Codec
from isojax.kernels.bitwords import Words
from isojax.kernels.levels import unsupported_codebook
from isojax.kernels.rotations import lanes_of, unsupported_transform
from isojax.quantizers import Packed, StraightThrough

DTYPES = ("float32", "bfloat16", "float16")
GIB2 = 1 << 31  # bytes


def book_of(codec: Codec) -> Any:
    """The quantizer of `codec`, without its straight-through gradient."""
    quantizer = codec.quantizer
    return quantizer.inner if isinstance(quantizer, StraightThrough) else quantizer


def levels_of(codec: Codec) -> Array:
    """The levels of a supported codec, made symmetric if `symmetric`."""
    return book_of(codec).table


def words_of(codec: Codec, dtype: Any) -> Words:
    """The layout of the codes of vectors in `dtype`, in a tile and in bytes."""
    t = codec.transform
    return Words(lanes_of(t, dtype), book_of(codec).bits, t.out_dim)


def unsupported_codec(codec: Codec, x: Any) -> str:
    """The requirement on a codec and its vectors (or their shape and dtype) that is not met."""
    if codec.offset is not None or codec.scale is not None:
        return "codecs without offset and scale."
    return (
        unsupported_array(x)
        or unsupported_transform(codec.transform, x.dtype)
        or unsupported_codebook(book_of(codec))
    )


def unsupported_array(x: Any) -> str:
    """The requirement on vectors that is not met."""
    if str(x.dtype) in DTYPES and math.prod(x.shape):
        return ""
    return f"non-empty arrays of {', '.join(DTYPES)}, got {x.dtype} {x.shape}."


def unsupported_packed(packed: Packed, words: Words) -> str:
    """The requirement on packed codes, read as `words`, that is not met."""
    if any(a is not None for a in (packed.offset, packed.outliers, packed.tensor_scale)):
        return "packed codes with only one scale per vector."
    if packed.signed or packed.data.size == 0:
        return "non-empty packed codes without sign."
    if packed.scale is not None and packed.scale.shape != (*packed.data.shape[:-1], 1):
        return f"one scale per vector, got scales {packed.scale.shape}."
    if (packed.dim, packed.bits) != (words.size, words.bits):
        codes = f"{packed.dim} of {packed.bits} bits"
        return f"codes of this codec, {words.size} of {words.bits} bits, got {codes}."
    return words.unsupported or unsupported_bytes(packed.data.size)


def unsupported_bytes(size: int) -> str:
    """The requirement on the bytes of codes: up to 4 GiB, Triton indexes in signed 32 bits."""
    return f"codes of up to 2 GiB, or over 4, got {size} bytes." if GIB2 < size <= 2 * GIB2 else ""
