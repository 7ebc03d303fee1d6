"""Quantizers: arrays to codes and back, `q.decode(q.encode(y))`.

A quantizer joins levels (evenly spaced, Lloyd-Max, any codebook, four-bit floats, unbounded with
an entropy coder), a rule for the scale, and a granularity: which elements share a scale. It does
not depend on the transform of its input. All are pytrees: fields that fix a shape are metadata,
all others leaves, so that `vmap` and `grad` reach them.
"""

from isojax.quantizers.base import Quantizer, StraightThrough, straight_through
from isojax.quantizers.codebook import Codebook, nearest_level
from isojax.quantizers.codes import Codes, Outliers, Packed
from isojax.quantizers.controls import gaussian_noise, none, zero
from isojax.quantizers.entropy import ECSQ, ecsq, ecsq_for_rate
from isojax.quantizers.float4 import FP4, MXFP4, NVFP4, fp4, mxfp4, nvfp4
from isojax.quantizers.float8 import FP8, fp8
from isojax.quantizers.lattice import Lattice, d4, d4_for_rate, e8, e8_for_rate
from isojax.quantizers.lloyd_max import lloyd_max_gaussian, lloyd_max_sphere
from isojax.quantizers.lloyd_max_samples import lloyd_max_channels, lloyd_max_samples
from isojax.quantizers.mixed import MixedCodebook, mixed_codebook
from isojax.quantizers.nf4 import nf4
from isojax.quantizers.packing import pack_bits, pack_mixed, packed_bytes, unpack_bits, unpack_mixed
from isojax.quantizers.rate import rate_bits
from isojax.quantizers.sparse import Sparse, sparse
from isojax.quantizers.unbiased import Unbiased, unbiased
from isojax.quantizers.uniform import Uniform, absmax, minmax

__all__ = [
    "Codebook",
    "Codes",
    "ECSQ",
    "FP4",
    "FP8",
    "Lattice",
    "MXFP4",
    "MixedCodebook",
    "NVFP4",
    "Outliers",
    "Packed",
    "Quantizer",
    "Sparse",
    "StraightThrough",
    "Unbiased",
    "Uniform",
    "absmax",
    "d4",
    "d4_for_rate",
    "e8",
    "e8_for_rate",
    "ecsq",
    "ecsq_for_rate",
    "fp4",
    "fp8",
    "gaussian_noise",
    "lloyd_max_channels",
    "lloyd_max_gaussian",
    "lloyd_max_samples",
    "lloyd_max_sphere",
    "minmax",
    "mixed_codebook",
    "mxfp4",
    "nearest_level",
    "nf4",
    "none",
    "nvfp4",
    "pack_bits",
    "pack_mixed",
    "packed_bytes",
    "rate_bits",
    "sparse",
    "straight_through",
    "unbiased",
    "unpack_bits",
    "unpack_mixed",
    "zero",
]
