"""Weights of a quantized model as bytes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from isojax._core.pytree import pytree
from isojax.bitstream import decode_codes, encode_codes
from isojax.codec import Codec
from isojax.quantize.parts import TABLES
from isojax.quantize.quantized import Quantized
from isojax.quantizers import Codes, Packed


@pytree
class EntropyCoded:
    """Unbounded codes, entropy-coded; see `isojax.bitstream`.

    Attributes:
        data: the bitstream.
        scale: as in `Codes`.
    """

    data: UInt8[Array, " n"]
    scale: Float[Array, "..."] | None


@pytree
class StoredWeight:
    """A weight as bytes; made by `store_weight`.

    Attributes:
        codec: of its rows [out, in].
        data: codes, packed by the quantizer; entropy-coded if they are unbounded integers;
            unchanged for the levels `none`.
    """

    codec: Codec
    data: Packed | EntropyCoded | Codes

    @property
    def codes(self) -> Codes:
        """The codes, with stored scales."""
        data = self.data
        if isinstance(data, Packed):
            return self.codec.quantizer.unpack(data)
        if isinstance(data, EntropyCoded):
            values = jnp.asarray(decode_codes(np.asarray(data.data).tobytes()))
            return Codes(values, data.scale)
        return data


def store_weight(codec: Codec, codes: Codes) -> StoredWeight:
    """A weight as bytes, with scales, offsets and outliers in fp32."""
    if codes.bits is not None:
        return StoredWeight(codec, codec.quantizer.pack(codes, jnp.float32))
    beside = (codes.offset, codes.outliers, codes.tensor_scale)
    if beside != (None,) * 3 or not jnp.issubdtype(codes.values.dtype, jnp.integer):
        return StoredWeight(codec, codes)
    data = np.frombuffer(encode_codes(np.asarray(codes.values)), np.uint8)
    return StoredWeight(codec, EntropyCoded(jnp.asarray(data), codes.scale))


def kernel_of(quantized: Quantized, name: str, layer: int) -> Array:
    """A weight in the form of the model: [in, out], or a table [tokens, width]."""
    if name in TABLES:
        return quantized.params[name]
    return quantized.params["layers"][name]["kernel"][layer]
