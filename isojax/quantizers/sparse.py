"""Dense and sparse: a share of the elements is kept exact, the rest quantized without them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import compute_dtype
from isojax._core.pytree import pytree, static
from isojax._core.quantile import quantile
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codebook import Codebook
from isojax.quantizers.codes import Codes, Outliers, Packed
from isojax.quantizers.granularity import split
from isojax.quantizers.uniform import Uniform


@pytree
class Sparse(Quantizer):
    """Keeps outliers out of a quantizer's range and codes; made by `sparse`.

    Attributes:
        inner: quantizes the rest.
        share: of the elements that share a scale, those to keep exact.
    """

    inner: Uniform | Codebook
    share: float = static()

    @property
    def dim(self) -> int:  # noqa: D102
        return self.inner.dim

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        rows = self._rows(y.astype(compute_dtype(y.dtype, "y")))
        median = quantile(rows, 0.5, (rows.ndim - 1,), keepdims=True)
        index = self._largest(jnp.abs(rows - median))
        rest = jnp.put_along_axis(rows, index, median, axis=-1, inplace=False)
        return self.encode_like(y, self.inner.encode(self._unrows(rest, y.shape)))

    def encode_like(self, y: Float[Array, "*batch d"], codes: Codes) -> Codes:
        """Codes of `y` at the scale of `codes`; elements with the largest error are kept exact."""
        y = y.astype(compute_dtype(y.dtype, "y"))
        dense = self.inner.encode_like(y, codes)
        rows = self._rows(y)
        index = self._largest(jnp.abs(rows - self._rows(self.inner.decode(dense))))
        kept = Outliers(jnp.take_along_axis(rows, index, axis=-1), index)
        return Codes(dense.values, dense.scale, dense.offset, dense.bits, kept)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        dense, kept = self.inner.decode(codes), codes.outliers
        assert kept is not None
        rows = jnp.put_along_axis(
            self._rows(dense), kept.index, kept.values.astype(dense.dtype), axis=-1, inplace=False
        )
        return self._unrows(rows, dense.shape)

    def pack(self, codes: Codes, dtype: Any = jnp.float16) -> Packed:  # noqa: D102
        return self.inner.pack(codes, dtype)

    def unpack(self, packed: Packed) -> Codes:  # noqa: D102
        return self.inner.unpack(packed)

    def _rows(self, y: Array) -> Array:
        """`y` with the elements that share a scale along the last axis."""
        if self.inner.granularity == "tensor":
            return y.reshape(1, -1)
        if self.inner.granularity == "channel":
            return y.reshape(-1, y.shape[-1]).T
        return split(y, self.inner.granularity, self.inner.group)

    def _unrows(self, rows: Array, shape: tuple[int, ...]) -> Array:
        return (rows.T if self.inner.granularity == "channel" else rows).reshape(shape)

    def _largest(self, size: Array) -> Array:
        """The indices of the elements to keep in each row, in the smallest unsigned dtype."""
        length = size.shape[-1]
        index = jax.lax.top_k(size, math.ceil(self.share * length))[1]
        fits = [t for t in (jnp.uint8, jnp.uint16) if length <= 1 + jnp.iinfo(t).max]
        return index.astype(fits[0] if fits else jnp.uint32)


def sparse(quantizer: Uniform | Codebook, share: float) -> Sparse:
    """`quantizer` with the largest outliers stored separately (KVQuant, Hooper et al. 2024).

    Of n elements that share a scale, k = ceil(share * n) are kept exact. The k farthest from the
    median do not affect the scale (they count as the median). At that scale, the k with the largest
    error are stored as 16 bits and an index (8 bits for n up to 256) each.

    Args:
        quantizer: made by `absmax`, `minmax`, `nearest_level`, `lloyd_max_*` or `mixed_codebook`;
            its granularity says which elements share a scale.
        share: of the elements to keep exact, above 0 and below 1, such as 0.01.

    Raises:
        ValueError: an argument is not allowed.
    """
    if not isinstance(quantizer, Uniform | Codebook):
        raise ValueError(
            f"quantizer must be Uniform or a Codebook, got {type(quantizer).__name__}."
        )
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share!r}.")
    return Sparse(quantizer, float(share))
