"""Four-bit floats: E2M1 numbers times a scale per block.

| format | block | scale | bits per element |
|---|---|---|---|
| FP4 | by granularity | real | 4, and 16 per scale |
| MXFP4 | 32 | E8M0, a power of two | 4.25 |
| NVFP4 | 16 | E4M3, times one fp32 number for the tensor | 4.5, and 32 per tensor |

E2M1 has a sign, two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their
negatives (OCP Microscaling Formats v1.0, 5.3.3). Codes are these bits, and a byte holds two
packed codes, the first one in the low half.
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from isojax._core.checks import check_above_zero, compute_dtype
from isojax._core.pytree import pytree, static
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codes import Codes
from isojax.quantizers.granularity import check_granularity, divide, scale_axes, split

LARGEST = 6.0
LARGEST_POWER = 4.0
LEAST_E4M3, LARGEST_E4M3 = 2.0**-9, 448.0
MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


class Float4(Quantizer):
    """E2M1 numbers times a scale: to the nearest, ties to even, saturated at 6.

    Attributes:
        granularity: which elements share a scale, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0.
    """

    granularity: str
    group: int

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        return self._codes(y, *self._scales(self._split(y)))

    def encode_like(self, y: Float[Array, "*batch d"], codes: Codes) -> Codes:  # noqa: D102
        return self._codes(y, codes.scale, codes.tensor_scale)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        v = from_e2m1(split(codes.values, self.granularity, self.group))
        return (v * self._step(codes.scale, codes.tensor_scale)).reshape(codes.values.shape)

    @abc.abstractmethod
    def _scales(self, v: Array) -> tuple[Array, Array | None]:
        """The scales of the split numbers `v` as stored, and of the tensor where it has one."""

    def _step(self, scale: Any, tensor_scale: Any) -> Array:
        """The factor of the E2M1 numbers."""
        return scale

    def _codes(self, y: Array, scale: Any, tensor_scale: Any) -> Codes:
        values = to_e2m1(divide(self._split(y), self._step(scale, tensor_scale)))
        return Codes(values.reshape(y.shape), scale, bits=4, tensor_scale=tensor_scale)

    def _split(self, y: Array) -> Array:
        return split(y.astype(compute_dtype(y.dtype, "y")), self.granularity, self.group)

    def _peak(self, v: Array) -> Array:
        return jnp.max(jnp.abs(v), scale_axes(v.ndim, self.granularity), keepdims=True)


@pytree
class FP4(Float4):
    """E2M1 numbers times a real scale; made by `fp4`.

    Attributes:
        clip: the share of max|v| that becomes 6.
        granularity: which elements share a scale.
        group: group length for granularity `group`, else 0.
    """

    clip: Float[Array, ""]
    granularity: str = static()
    group: int = static()

    def _scales(self, v: Array) -> tuple[Array, None]:
        return self.clip.astype(v.dtype) * self._peak(v) / LARGEST, None


@pytree
class MXFP4(Float4):
    """E2M1 numbers in blocks of 32 times a power of two; made by `mxfp4`."""

    granularity = "group"
    group = 32

    def _scales(self, v: Array) -> tuple[Array, None]:
        return to_e8m0(self._peak(v) / LARGEST_POWER), None

    def _step(self, scale: Any, tensor_scale: Any) -> Array:
        return from_e8m0(scale)


@pytree
class NVFP4(Float4):
    """E2M1 numbers in blocks of 16 times an E4M3 number, times a tensor scale; made by `nvfp4`.

    Attributes:
        tensor_scale: one for all tensors, not stored with the codes; or None to take it from each
            tensor and store it with the codes.
    """

    tensor_scale: Float[Array, ""] | None
    granularity = "group"
    group = 16

    def _scales(self, v: Array) -> tuple[Array, Array | None]:
        peak, own = self._peak(v), None
        if self.tensor_scale is None:
            own = jnp.max(peak) / (LARGEST * LARGEST_E4M3)
        scale = jax.lax.stop_gradient(divide(peak, LARGEST * self._of_tensor(own)))
        return jnp.clip(scale, LEAST_E4M3, LARGEST_E4M3).astype(jnp.float8_e4m3fn), own

    def _step(self, scale: Any, tensor_scale: Any) -> Array:
        tensor_scale = self._of_tensor(tensor_scale)
        return scale.astype(tensor_scale.dtype) * tensor_scale

    def _of_tensor(self, own: Any) -> Any:
        return own if self.tensor_scale is None else self.tensor_scale


def fp4(
    granularity: str = "tensor", group: int = 0, *, clip: float | Float[Array, ""] = 1.0
) -> FP4:
    """E2M1 numbers times the real scale s = clip * max|v| / 6.

    Args:
        granularity: which elements share a scale, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0; it must divide the last axis.
        clip: the share of max|v| that becomes 6, above 0 and at most 1; traced. Larger magnitudes
            become 6 s.

    Raises:
        ValueError: an argument is none of the allowed values, or `clip` is a Python number out of
            its range.
    """
    check_granularity(granularity, group)
    if isinstance(clip, int | float) and not 0 < clip <= 1:
        raise ValueError(f"clip must be above 0 and at most 1, got {clip!r}.")
    return FP4(jnp.asarray(clip, float), granularity, group)


def mxfp4() -> MXFP4:
    """MXFP4 of the OCP Microscaling Formats v1.0: blocks of 32 along the last axis.

    A block has the scale 2^(floor(log2(max|v|)) - 2) (section 6.3), stored as E8M0. Its largest
    element is thus 4 to 8 times the scale, and above 6 it loses up to a quarter. A block with an
    infinity or a NaN is NaN. The least scale is not 2^-127 but 2^-126, which devices that flush
    subnormal numbers still tell from zero; blocks of zeros have it too.

    The last axis must be a multiple of 32, or encoding raises ValueError.
    """
    return MXFP4()


def nvfp4(tensor_scale: float | Float[Array, ""] | None = None) -> NVFP4:
    """NVFP4: blocks of 16 along the last axis (NVIDIA 2025, arXiv 2509.25149).

    A block has the scale max|v| / (6 t), rounded to E4M3, at least 2^-9 and at most 448, where t
    is the tensor scale: max|y| / (6 * 448) over all of `y`, so that the largest block has the
    scale 448.

    Args:
        tensor_scale: t from calibration, traced, used for every tensor: magnitudes above 6 * 448 t
            saturate, and t is not counted in the rate. None to take it from each tensor (under
            `vmap`: of each) and store it with the codes in fp32.

    The last axis must be a multiple of 16, or encoding raises ValueError.

    Raises:
        ValueError: `tensor_scale` is a Python number that is not above zero and finite.
    """
    check_above_zero("tensor_scale", tensor_scale)
    return NVFP4(None if tensor_scale is None else jnp.asarray(tensor_scale, float))


def to_e2m1(v: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """The bits of the nearest E2M1 number, ties to the even mantissa.

    NaN, which E2M1 lacks, becomes zero.
    """
    size, code = jnp.abs(v), jnp.signbit(v).astype(jnp.uint8) << 3
    for i, middle in enumerate(MIDDLES):
        code += ((size >= middle) if i % 2 else (size > middle)).astype(jnp.uint8)
    return code


def from_e2m1(code: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """The E2M1 numbers of these bits, in fp32; piecewise linear and convex in the code."""
    at = (code & 7).astype(jnp.float32)
    size = jnp.maximum(jnp.maximum(at / 2, at - 2), 2 * at - 8)
    return jnp.where(code > 7, -size, size)


def to_e8m0(v: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """The E8M0 bits of the largest power of two up to `v`: the exponent of fp32, at least 2^-126.

    For infinity and NaN, the bits of NaN. They stay uint8, since float8_e8m0fnu has no zero: a
    zero-initialised array of it is not zero.
    """
    v = jnp.maximum(v.astype(jnp.float32), jnp.finfo(jnp.float32).tiny)
    return (jax.lax.bitcast_convert_type(v, jnp.int32) >> 23 & 0xFF).astype(jnp.uint8)


def from_e8m0(code: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """The powers of two, or NaN, of these E8M0 bits, in fp32."""
    return jax.lax.bitcast_convert_type(code, jnp.float8_e8m0fnu).astype(jnp.float32)
