"""The contract of a quantizer."""

from __future__ import annotations

import abc

import jax
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float, Shaped

from isojax._core.pytree import pytree, static


@pytree
class Codes:
    """What a quantizer stores for one array.

    Attributes:
        values: the code of every number, in the shape of the array.
        scale: what a code is multiplied by; broadcasts against `values` (for groups, against
            `values` split into groups). None where the quantizer needs none.
        offset: what is added after scaling; like `scale`.
        bits: fixed-rate bits a code, or None where codes are unbounded (to be entropy-coded).
    """

    values: Shaped[Array, "..."]
    scale: Float[Array, "..."] | None = None
    offset: Float[Array, "..."] | None = None
    bits: int | None = static(default=None)


class Quantizer(abc.ABC):
    """Maps arrays to codes and back: `encode(y) -> Codes`, `decode(codes) -> y_hat`.

    Laws, tested for every member: `decode` of `encode` has the shape of `y`; encoding what was
    decoded at the same scale changes nothing (save for the noise control); bf16 and fp16 are
    computed in fp32 and `roundtrip` returns the dtype of `y`. The quantizer never knows which
    transform made `y`.
    """

    @abc.abstractmethod
    def encode(self, y: Float[Array, "*batch d"]) -> Codes:
        """Codes of `y`.

        Raises:
            ValueError: the dtype of `y` is not floating.
        """

    @abc.abstractmethod
    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:
        """What the codes stand for, in fp32 (or fp64 for scales in fp64)."""

    def encode_like(self, y: Float[Array, "*batch d"], codes: Codes) -> Codes:
        """Codes of `y` at the scale and offset of `codes`, where the quantizer has them.

        For scales taken from calibration data: `q.encode_like(y, q.encode(calibration))`.
        """
        return self.encode(y)

    def roundtrip(self, y: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """`decode(encode(y))` in the dtype of `y`."""
        return self.decode(self.encode(y)).astype(canonicalize_dtype(y.dtype))


@pytree
class StraightThrough(Quantizer):
    """Wraps a quantizer so that `roundtrip` has the gradient of the identity (Bengio et al. 2013).

    The values are those of the wrapped quantizer; use it inside a loss that is to be minimised.
    """

    inner: Quantizer

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        return self.inner.encode(y)

    def encode_like(self, y: Float[Array, "*batch d"], codes: Codes) -> Codes:  # noqa: D102
        return self.inner.encode_like(y, codes)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        return self.inner.decode(codes)

    def roundtrip(self, y: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:  # noqa: D102
        return y + jax.lax.stop_gradient(self.inner.roundtrip(y) - y)


def straight_through(quantizer: Quantizer) -> StraightThrough:
    """`quantizer` with the gradient of the identity through `roundtrip`."""
    return StraightThrough(quantizer)
