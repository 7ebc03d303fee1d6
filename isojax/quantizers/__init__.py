"""Quantizers: arrays to codes and back, `q.decode(q.encode(y))`.

A quantizer joins levels (evenly spaced, Lloyd-Max, any codebook, four-bit floats, unbounded with
an entropy coder), a rule for the scale, and a granularity, which says what numbers share a scale.
It never knows which transform made its input. All are pytrees: what fixes a shape is metadata,
everything else a leaf, so that `vmap` and `grad` reach it.
"""

from isojax.quantizers.base import Quantizer as Quantizer
from isojax.quantizers.base import StraightThrough as StraightThrough
from isojax.quantizers.base import straight_through as straight_through
from isojax.quantizers.codebook import Codebook as Codebook
from isojax.quantizers.codebook import nearest_level as nearest_level
from isojax.quantizers.codes import Codes as Codes
from isojax.quantizers.codes import Outliers as Outliers
from isojax.quantizers.codes import Packed as Packed
from isojax.quantizers.controls import gaussian_noise as gaussian_noise
from isojax.quantizers.controls import none as none
from isojax.quantizers.controls import zero as zero
from isojax.quantizers.entropy import ECSQ as ECSQ
from isojax.quantizers.entropy import ecsq as ecsq
from isojax.quantizers.entropy import ecsq_for_rate as ecsq_for_rate
from isojax.quantizers.float4 import FP4 as FP4
from isojax.quantizers.float4 import MXFP4 as MXFP4
from isojax.quantizers.float4 import NVFP4 as NVFP4
from isojax.quantizers.float4 import fp4 as fp4
from isojax.quantizers.float4 import mxfp4 as mxfp4
from isojax.quantizers.float4 import nvfp4 as nvfp4
from isojax.quantizers.float8 import FP8 as FP8
from isojax.quantizers.float8 import fp8 as fp8
from isojax.quantizers.lattice import Lattice as Lattice
from isojax.quantizers.lattice import d4 as d4
from isojax.quantizers.lattice import d4_for_rate as d4_for_rate
from isojax.quantizers.lattice import e8 as e8
from isojax.quantizers.lattice import e8_for_rate as e8_for_rate
from isojax.quantizers.lloyd_max import lloyd_max_gaussian as lloyd_max_gaussian
from isojax.quantizers.lloyd_max import lloyd_max_sphere as lloyd_max_sphere
from isojax.quantizers.lloyd_max_samples import lloyd_max_channels as lloyd_max_channels
from isojax.quantizers.lloyd_max_samples import lloyd_max_samples as lloyd_max_samples
from isojax.quantizers.mixed import MixedCodebook as MixedCodebook
from isojax.quantizers.mixed import mixed_codebook as mixed_codebook
from isojax.quantizers.named import NAMES as NAMES
from isojax.quantizers.named import from_name as from_name
from isojax.quantizers.nf4 import nf4 as nf4
from isojax.quantizers.packing import pack_bits as pack_bits
from isojax.quantizers.packing import pack_mixed as pack_mixed
from isojax.quantizers.packing import packed_bytes as packed_bytes
from isojax.quantizers.packing import unpack_bits as unpack_bits
from isojax.quantizers.packing import unpack_mixed as unpack_mixed
from isojax.quantizers.rate import rate_bits as rate_bits
from isojax.quantizers.sparse import Sparse as Sparse
from isojax.quantizers.sparse import sparse as sparse
from isojax.quantizers.unbiased import Unbiased as Unbiased
from isojax.quantizers.unbiased import unbiased as unbiased
from isojax.quantizers.uniform import Uniform as Uniform
from isojax.quantizers.uniform import absmax as absmax
from isojax.quantizers.uniform import minmax as minmax
