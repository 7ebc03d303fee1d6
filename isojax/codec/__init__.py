"""Codecs: a transform and a quantizer joined, from arrays to stored bits and back.

`codec.roundtrip(x)` is `x` after quantization; `codec.store(x)` is its storage form, bytes and
half-precision scales, which `codec.load` reads. Inner products with stored vectors need no inverse
transform: rotate the query instead (`rotate_query`, `load_rotated`). `QJL` adds the signs of a
sketched residual, with which inner products are unbiased.
"""

from isojax.codec.base import Codec
from isojax.codec.qjl import QJL, Stored, qjl

__all__ = [
    "Codec",
    "QJL",
    "Stored",
    "qjl",
]
