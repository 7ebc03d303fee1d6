"""A codec joins a transform and a quantizer; neither knows the other."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import compute_dtype
from isojax._core.pytree import pytree
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codes import Codes, Packed
from isojax.transforms.base import Transform


@pytree
class Codec:
    """Transform, then quantize; and back. In between, vectors are called rotated.

    All is computed in fp32 (fp64 for fp64), whatever the dtype of the input. A batch of codecs,
    say one a layer and head, is a codec whose leaves have leading axes, to be used under `vmap`.

    Attributes:
        transform: acts on `(x - offset) / scale`.
        quantizer: acts on what the transform returns.
        offset: subtracted from `x [..., d]` and added on reading, or None for zero.
        scale: what `x` is divided by and multiplied with on reading, or None for one; not zero.

    Example:
        >>> codec = Codec(haar(key, 128), absmax(3))
        >>> x_hat = codec.roundtrip(x)
        >>> x_hat = codec.load(codec.store(x))  # through bytes
    """

    transform: Transform
    quantizer: Quantizer
    offset: Float[Array, "..."] | None = None
    scale: Float[Array, "..."] | None = None

    def encode(self, x: Float[Array, "*batch d"]) -> Codes:
        """Codes of the rotated `x`."""
        return self.quantizer.encode(self.rotate(x))

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:
        """What the codes stand for, rotated back, in fp32."""
        return self.unrotate(self.quantizer.decode(codes))

    def roundtrip(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """What is left of `x` after both ways, in its dtype; scales are not rounded."""
        return self.unrotate(self.quantizer.roundtrip(self.rotate(x))).astype(x.dtype)

    def store(self, x: Float[Array, "*batch d"], dtype: Any = jnp.float16) -> Packed:
        """The bytes that stand for `x`, with scales in `dtype`.

        Scales are rounded first and codes chosen at the rounded ones, so that what `load` returns
        is as near as the quantizer allows.

        Raises:
            ValueError: the quantizer has no fixed number of bits.
        """
        return self.quantizer.pack(self.quantizer.encode_rounded(self.rotate(x), dtype), dtype)

    def load(self, packed: Packed) -> Float[Array, "*batch d"]:
        """What `packed` stands for, in fp32."""
        return self.unrotate(self.load_rotated(packed))

    def load_rotated(self, packed: Packed) -> Float[Array, "*batch e"]:
        """`load` before the inverse transform, without scale and offset, in fp32."""
        return self.quantizer.decode(self.quantizer.unpack(packed))

    def rotate(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch e"]:
        """`transform.apply((x - offset) / scale)`, in fp32."""
        x = x.astype(compute_dtype(x.dtype))
        x = x if self.offset is None else x - self.offset
        return self.transform.apply(x if self.scale is None else x / self.scale)

    def unrotate(self, y: Float[Array, "*batch e"]) -> Float[Array, "*batch d"]:
        """The inverse of `rotate`."""
        x = self.transform.T.apply(y)
        x = x if self.scale is None else x * self.scale
        return x if self.offset is None else x + self.offset

    def rotate_query(self, query: Float[Array, "*batch d"]) -> Float[Array, "*batch e"]:
        """`transform.dual.apply(query * scale)`, in fp32: what to hold against rotated vectors.

        `query @ load(p) == rotate_query(query) @ load_rotated(p) + query @ offset`; the last term
        is the same for all that is stored with one offset, and the softmax does not see it.
        """
        query = query.astype(compute_dtype(query.dtype, "query"))
        return self.transform.dual.apply(query if self.scale is None else query * self.scale)
