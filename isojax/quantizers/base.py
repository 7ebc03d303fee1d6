"""The interface of a quantizer."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float, Integer, UInt8

from isojax._core.checks import check_choice
from isojax._core.pytree import pytree, static
from isojax.quantizers.codes import Codes, Packed, loaded, stored
from isojax.quantizers.packing import pack_bits, unpack_bits


class Quantizer(abc.ABC):
    """Maps arrays to codes and back: `encode(y) -> Codes`, `decode(codes) -> y_hat`.

    Laws, tested for every member: `decode` of `encode` has the shape of `y`; encoding a decoded
    array at the same scale changes nothing (except for the noise control); bf16 and fp16 are
    computed in fp32 and `roundtrip` returns the dtype of `y`; `unpack` of `pack` returns the codes,
    with scales rounded. The quantizer does not depend on the transform of `y`.

    Elements that share a scale share a NaN: it becomes the scale, and all of them decode to NaN;
    other elements are not affected. Levels without a scale cannot represent NaN.

    A member is a frozen dataclass and a pytree, made by `isojax.pytree` and `isojax.static`. A
    subclass defines `encode` and `decode`; also `encode_like` if it has scales or offsets, and
    `pack_values` and `unpack_values` unless all codes take `bits`, a whole number up to 8.
    """

    @abc.abstractmethod
    def encode(self, y: Float[Array, "*batch d"]) -> Codes:
        """Codes of `y`.

        Raises:
            ValueError: the dtype of `y` is not floating.
        """

    @abc.abstractmethod
    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:
        """The values of the codes, in fp32 (or fp64 for scales in fp64)."""

    @property
    def dim(self) -> int:
        """Length of the vectors that the levels are made for, 0 for any."""
        return 0

    @property
    def together(self) -> int:
        """Number of neighbours that are rounded together: 1, except for lattices."""
        return 1

    def encode_like(self, y: Float[Array, "*batch d"], codes: Codes) -> Codes:
        """Codes of `y` at the scale and offset of `codes`, if the quantizer has these.

        For scales from calibration data: `q.encode_like(y, q.encode(calibration))`. GPTQ rounds
        with it.

        Raises:
            ValueError: the codes have scales, and the quantizer does not define this method.
        """
        if codes.scale is not None or codes.offset is not None:
            raise ValueError(
                f"{type(self).__name__} must define encode_like(y, codes) to round at given scales."
            )
        return self.encode(y)

    def encode_rounded(self, y: Float[Array, "*batch d"], dtype: Any = jnp.float16) -> Codes:
        """Codes of `y` at its scale and offset as rounded by `pack`."""
        return self.encode_like(y, self.encode(y).rounded(dtype))

    def roundtrip(self, y: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """`decode(encode(y))` in the dtype of `y`."""
        return self.decode(self.encode(y)).astype(canonicalize_dtype(y.dtype))

    def pack(self, codes: Codes, dtype: Any = jnp.float16) -> Packed:
        """The codes as bytes, without gaps; scales, offsets and outliers in `dtype`.

        These are rounded and clipped to the finite range of `dtype`: a scale too small for it
        becomes zero, which decodes to zeros, and one too large its largest number. Scales of one
        byte are unchanged, and a tensor scale is stored in fp32.

        Raises:
            ValueError: the codes are unbounded.
        """
        if codes.bits is None:
            raise ValueError("codes must have a number of bits to be packed, got codes.bits None.")
        return Packed(
            self.pack_values(codes),
            None if codes.scale is None else stored(codes.scale, dtype),
            None if codes.offset is None else stored(codes.offset, dtype),
            None if codes.outliers is None else codes.outliers.stored(dtype),
            None if codes.tensor_scale is None else stored(codes.tensor_scale, jnp.float32),
            codes.bits,
            codes.values.shape[-1],
            jnp.issubdtype(codes.values.dtype, jnp.signedinteger),
        )

    def unpack(self, packed: Packed) -> Codes:
        """The inverse of `pack`: the codes, with rounded scales in fp32."""
        scale, offset = (
            None if part is None else loaded(part) for part in (packed.scale, packed.offset)
        )
        values = self.unpack_values(packed)
        return Codes(values, scale, offset, packed.bits, packed.outliers, packed.tensor_scale)

    def load_columns(
        self, packed: Packed
    ) -> tuple[Float[Array, "d s"], Float[Array, " s"] | None] | None:
        """The vectors of `packed` [s, n] as columns, before scaling, and their scales.

        For products with many vectors on a CPU, where loops over vectors are faster than loops over
        the elements of one. None where the quantizer has no such form.
        """
        return None

    def pack_values(self, codes: Codes) -> UInt8[Array, "*batch n"]:
        """The part of `pack` without scales: `codes.values` as bytes."""
        bits, values = int(codes.bits or 0), codes.values
        if jnp.issubdtype(values.dtype, jnp.signedinteger):
            values = (values.astype(jnp.int16) + _half(bits)).astype(jnp.uint8)
        return pack_bits(values, bits)

    def unpack_values(self, packed: Packed) -> Integer[Array, "*batch d"]:
        """The inverse of `pack_values`, from `packed.data`."""
        bits = int(packed.bits)
        values = unpack_bits(packed.data, bits, packed.dim)
        if not packed.signed:
            return values
        return (values.astype(jnp.int16) - _half(bits)).astype(jnp.int8)


def _half(bits: int) -> int:
    return (1 << bits) >> 1


class Wrapped(Quantizer):
    """A quantizer that delegates to `inner`, except for what a subclass overrides."""

    inner: Any

    @property
    def dim(self) -> int:  # noqa: D102
        return self.inner.dim

    @property
    def together(self) -> int:  # noqa: D102
        return self.inner.together

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        return self.inner.encode(y)

    def encode_like(self, y: Float[Array, "*batch d"], codes: Codes) -> Codes:  # noqa: D102
        return self.inner.encode_like(y, codes)

    def encode_rounded(self, y: Float[Array, "*batch d"], dtype: Any = jnp.float16) -> Codes:  # noqa: D102
        return self.inner.encode_rounded(y, dtype)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        return self.inner.decode(codes)

    def pack(self, codes: Codes, dtype: Any = jnp.float16) -> Packed:  # noqa: D102
        return self.inner.pack(codes, dtype)

    def unpack(self, packed: Packed) -> Codes:  # noqa: D102
        return self.inner.unpack(packed)


SCALES = ("held", "learned")


@pytree
class StraightThrough(Wrapped):
    """Wraps a quantizer so that `roundtrip` has the gradient of the identity (Bengio et al. 2013).

    The values are those of the wrapped quantizer; use it inside a loss that is to be minimised.

    Attributes:
        inner: the quantizer.
        scales: see `straight_through`.
    """

    inner: Quantizer
    scales: str = static(default="held")

    def roundtrip(self, y: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:  # noqa: D102
        if self.scales == "held":
            return y + jax.lax.stop_gradient(self.inner.roundtrip(y) - y)
        codes = self.inner.encode(y)
        error = relative_to_scale(self.inner.decode(codes) - y, codes)
        return (y + error).astype(canonicalize_dtype(y.dtype))


def straight_through(quantizer: Quantizer, scales: str = "held") -> StraightThrough:
    """`quantizer` with the gradient of the identity through its rounding.

    Args:
        quantizer: of any kind.
        scales: `held`: the error is a constant. `learned`: it is proportional to its scale, so
            that gradients reach the elements that set the scale (as in LSQ, Esser et al. 2020,
            arXiv 1902.08153): the peak, for `absmax`. A scale that is a norm does not respond to
            rotations, so `learned` adds nothing there.

    Raises:
        ValueError: `scales` is neither; on use, `learned` scales are not real numbers.
    """
    return StraightThrough(quantizer, check_choice("scales", scales, SCALES))


def relative_to_scale(error: Array, codes: Codes) -> Array:
    """`error`, held constant relative to its scale."""
    error = jax.lax.stop_gradient(error)
    if codes.scale is None or codes.scale.dtype != error.dtype:
        raise ValueError("scales must be real numbers to be learned, got a quantizer without.")
    held = jax.lax.stop_gradient(codes.scale)
    growth = codes.scale / jnp.where(held == 0, 1, held)
    groups = (*growth.shape[:-1], -1) if growth.ndim > error.ndim else error.shape
    return (error.reshape(groups) * growth).reshape(error.shape)
