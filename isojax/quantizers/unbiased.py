"""Scales for inner products: the projection of the decoded vector on y is as long as y."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.pytree import pytree
from isojax.quantizers.base import Quantizer, Wrapped
from isojax.quantizers.codebook import Codebook
from isojax.quantizers.codes import Codes
from isojax.quantizers.granularity import scale_axes, split


@pytree
class Unbiased(Wrapped):
    """The codes of `inner` with scales such that `<y, y_hat> == <y, y>`; made by `unbiased`."""

    inner: Codebook

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        return self._lengthen(y, self.inner.encode(y))

    def encode_rounded(self, y: Float[Array, "*batch d"], dtype: Any = jnp.float16) -> Codes:  # noqa: D102
        return self._lengthen(y, self.inner.encode_rounded(y, dtype)).rounded(dtype)

    def _lengthen(self, y: Array, codes: Codes) -> Codes:
        assert codes.scale is not None
        v, v_hat = (self._split(a.astype(codes.scale.dtype)) for a in (y, self.inner.decode(codes)))
        own, met = (self._sum(v * a) for a in (v, v_hat))
        longer = jnp.where(met > 0, own / jnp.where(met > 0, met, 1), 1)
        return dataclasses.replace(codes, scale=codes.scale * longer)

    def _split(self, y: Array) -> Array:
        return split(y, self.inner.granularity, self.inner.group)

    def _sum(self, v: Array) -> Array:
        return jnp.sum(v, scale_axes(v.ndim, self.inner.granularity), keepdims=True)


def unbiased(quantizer: Quantizer) -> Unbiased:
    """`quantizer` with each scale times |y|^2 / <y, y_hat>, over the elements that share it.

    Levels of least squared error are the means of their cells, so y_hat is shorter than y, by the
    ratio of its error to the energy (12% at 2 bits). A sum of many such vectors is too short by the
    same ratio, while the rest of their errors averages out. So sums of vectors (attention over
    values) and inner products (queries with keys) are more accurate with a larger squared error and
    no shrinkage. The estimator is RaBitQ's (Gao and Long 2024, arXiv 2405.12497); no further byte
    is stored.

    Args:
        quantizer: made by `nearest_level`, `lloyd_max_*` or `mixed_codebook`, with scales.

    Raises:
        ValueError: it is none of these, or its codes have no scale.
    """
    if not isinstance(quantizer, Codebook) or quantizer.normalize == "none":
        got = getattr(quantizer, "normalize", type(quantizer).__name__)
        raise ValueError(f"quantizer must be a Codebook that divides by a scale, got {got!r}.")
    return Unbiased(quantizer)
