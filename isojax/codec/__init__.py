"""Codecs: a transform and a quantizer joined, from arrays to stored bits and back.

`codec.roundtrip(x)` is what quantization leaves of `x`; `codec.store(x)` is what a cache would
hold, bytes and half-precision scales, and `codec.load` reads it. Products with what is stored need
no inverse transform: turn the query instead (`rotate_query`, `load_rotated`). `QJL` adds the signs
of a sketched residual, with which inner products are unbiased.
"""

from isojax.codec.base import Codec
from isojax.codec.qjl import QJL, Stored, qjl

__all__ = [
    "Codec",
    "QJL",
    "Stored",
    "qjl",
]
