"""A codec joins a transform and a quantizer; neither knows the other."""

from __future__ import annotations

from jaxtyping import Array, Float

from isojax._core.checks import compute_dtype
from isojax._core.pytree import pytree
from isojax.quantizers.base import Codes, Quantizer
from isojax.transforms.base import Transform


@pytree
class Codec:
    """Transform, then quantize; and back.

    Example:
        >>> codec = Codec(haar(key, 128), absmax(3))
        >>> x_hat = codec.roundtrip(x)
    """

    transform: Transform
    quantizer: Quantizer

    def encode(self, x: Float[Array, "*batch d"]) -> Codes:
        """Codes of the transformed `x`; bf16 and fp16 computed in fp32."""
        return self.quantizer.encode(self.transform.apply(x.astype(compute_dtype(x.dtype))))

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:
        """Inverse transform of the decoded codes, in fp32."""
        return self.transform.T.apply(self.quantizer.decode(codes))

    def roundtrip(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """What is left of `x` after both ways, in its dtype; bf16 and fp16 computed in fp32."""
        y = self.transform.apply(x.astype(compute_dtype(x.dtype)))
        return self.transform.T.apply(self.quantizer.roundtrip(y)).astype(x.dtype)
