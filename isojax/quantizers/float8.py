"""Eight-bit floats: E4M3 or E5M2 numbers times a scale.

E4M3 has 4 bits of exponent and 3 of mantissa, numbers up to 448 and no infinity; E5M2 has 5 and 2,
up to 57344 (Micikevicius et al. 2022, "FP8 formats for deep learning", arXiv 2209.05433).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_choice, compute_dtype
from isojax._core.pytree import pytree, static
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codes import Codes
from isojax.quantizers.granularity import check_granularity, divide, shared_scale, split

KINDS = {"e4m3": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2}


@pytree
class FP8(Quantizer):
    """Eight-bit floats times a real scale: to the nearest, ties to even; made by `fp8`.

    Codes are the bits. Values beyond the largest number, at scales of other data, saturate.

    Attributes:
        kind: `e4m3` or `e5m2`.
        granularity: which numbers share a scale, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0.
    """

    kind: str = static()
    granularity: str = static()
    group: int = static()

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        peak = shared_scale(self._split(y), "peak", self.granularity)
        assert peak is not None
        return self._codes(y, peak / self._largest)

    def encode_like(self, y: Float[Array, "*batch d"], codes: Codes) -> Codes:  # noqa: D102
        return self._codes(y, codes.scale)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        assert codes.scale is not None
        v = split(codes.values, self.granularity, self.group)
        v = jax.lax.bitcast_convert_type(v, KINDS[self.kind]).astype(codes.scale.dtype)
        return (v * codes.scale).reshape(codes.values.shape)

    @property
    def _largest(self) -> float:
        return float(jnp.finfo(KINDS[self.kind]).max)

    def _codes(self, y: Array, scale: Any) -> Codes:
        v = jnp.clip(divide(self._split(y), scale), -self._largest, self._largest)
        values = jax.lax.bitcast_convert_type(v.astype(KINDS[self.kind]), jnp.uint8)
        return Codes(values.reshape(y.shape), scale, bits=8)

    def _split(self, y: Array) -> Array:
        return split(y.astype(compute_dtype(y.dtype, "y")), self.granularity, self.group)


def fp8(kind: str = "e4m3", granularity: str = "token", group: int = 0) -> FP8:
    """Eight-bit floats times the scale max|v| / 448 for `e4m3`, max|v| / 57344 for `e5m2`.

    Args:
        kind: `e4m3` or `e5m2`.
        granularity: which numbers share a scale, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0; it must divide the last axis.

    Raises:
        ValueError: an argument is none of the allowed values.
    """
    check_granularity(granularity, group)
    return FP8(check_choice("kind", kind, KINDS), granularity, group)
