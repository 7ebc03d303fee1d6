"""Weights of a quantized model as bytes, and how many these are."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from isojax._core.pytree import pytree
from isojax.bitstream import decode_codes, encode_codes
from isojax.codec import Codec
from isojax.quantize.parts import TABLES
from isojax.quantize.quantized import Quantized
from isojax.quantizers import Codes, Packed
from isojax.quantizers.codes import nbytes


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
        data: codes as packed by its quantizer; entropy-coded where they are unbounded integers;
            else as they are (levels `none`).
    """

    codec: Codec
    data: Packed | EntropyCoded | Codes

    @property
    def codes(self) -> Codes:
        """The codes, with scales as they are stored."""
        data = self.data
        if isinstance(data, Packed):
            return self.codec.quantizer.unpack(data)
        if isinstance(data, EntropyCoded):
            values = jnp.asarray(decode_codes(np.asarray(data.data).tobytes()))
            return Codes(values, data.scale)
        return data


def store_weight(codec: Codec, codes: Codes, dtype: Any = jnp.float32) -> StoredWeight:
    """A weight as bytes, with scales, offsets and outliers in `dtype`."""
    if codes.bits is not None:
        return StoredWeight(codec, codec.quantizer.pack(codes, dtype))
    beside = (codes.offset, codes.outliers, codes.tensor_scale)
    if beside != (None,) * 3 or not jnp.issubdtype(codes.values.dtype, jnp.integer):
        return StoredWeight(codec, codes)
    data = np.frombuffer(encode_codes(np.asarray(codes.values)), np.uint8)
    return StoredWeight(codec, EntropyCoded(jnp.asarray(data), codes.scale))


def kernel_of(quantized: Quantized, name: str, layer: int) -> Array:
    """A weight as the model has it: [in, out], or a table [tokens, width]."""
    if name in TABLES:
        return quantized.params[name]
    return quantized.params["layers"][name]["kernel"][layer]


def _shapes(function: Any) -> Any:
    return functools.partial(jax.eval_shape, function)


@dataclasses.dataclass(frozen=True)
class Size:
    """Bytes of a quantized model, by kind; made by `size`.

    Attributes:
        codes: of weights.
        scales: with offsets, tensor scales and outliers.
        decoders: weights' own coordinates, and codebooks.
        online: transforms and quantizers of inputs, turns of queries and keys.
        cache: codecs of the stores of keys and values; those of tokens are not counted.
        merged: transforms that weights are turned by, kept to go on quantizing.
        exact: parameters that are not in codes.
        weights: the number of weights in codes.
    """

    codes: int
    scales: int
    decoders: int
    online: int
    cache: int
    merged: int
    exact: int
    weights: int

    @property
    def total(self) -> int:
        """All bytes."""
        fields = dataclasses.asdict(self)
        return sum(fields.values()) - self.weights

    @property
    def bits_per_weight(self) -> float:
        """Bits of codes and scales per weight in codes, as `rate_bits` counts them.

        `decoders` are left out: where coordinates are dense, look at these too.
        """
        return 8 * (self.codes + self.scales) / max(self.weights, 1)


def size(quantized: Quantized, scale_dtype: Any = "float32") -> Size:
    """Bytes that a quantized model takes, as `save` packs it.

    Args:
        quantized: the model. Unbounded codes are entropy-coded to count them.
        scale_dtype: of scales, offsets and outliers; `save` keeps fp32.
    """
    codes = total = weights = replaced = 0
    for name, each in quantized.codes.items():
        for layer, (found, codec) in enumerate(zip(each, quantized.codecs[name], strict=True)):
            if found is None or codec is None:
                continue
            store = functools.partial(store_weight, dtype=jnp.dtype(scale_dtype))
            # where the number of bytes is fixed, shapes suffice
            data = (store if found.bits is None else _shapes(store))(codec, found).data
            codes += nbytes(data.values if isinstance(data, Codes) else data.data)
            total += nbytes(data)
            weights += found.values.size
            replaced += kernel_of(quantized, name, layer).nbytes
    return Size(
        codes, total - codes, nbytes(quantized.codecs),
        nbytes((quantized.inputs, quantized.turn)), nbytes((quantized.keys, quantized.values)),
        nbytes(quantized.shared), nbytes(quantized.params) - replaced, weights,
    )  # fmt: skip
