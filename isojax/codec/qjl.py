"""QJL: the signs of a sketched residual, with which inner products are unbiased.

TurboQuant-prod (Zandieh et al. 2026, arXiv 2504.19874) on QJL (Zandieh et al. 2024, arXiv
2406.03482): for Gaussian S, the mean of sqrt(pi/2) / m <S q, sign(S r)> is <q, r> / |r|.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from isojax._core.checks import check_positive, compute_dtype
from isojax._core.pytree import pytree
from isojax.codec.base import Codec
from isojax.quantizers.codes import Packed, nbytes, stored
from isojax.quantizers.packing import pack_bits, unpack_bits


@pytree
class Stored:
    """The storage form of vectors, from `QJL.store`.

    Attributes:
        first: of the codec.
        signs: of the sketched residual, one bit each.
        norm: of the residual, in the storage dtype.
    """

    first: Packed
    signs: UInt8[Array, "*batch n"]
    norm: Float[Array, "*batch 1"]

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored."""
        return nbytes(self)


@pytree
class QJL:
    """A codec, and the signs of `sketch @ residual`; made by `qjl`.

    Attributes:
        codec: the first stage, with one bit per element less than the whole.
        sketch: Gaussian matrix, [m, d].
    """

    codec: Codec
    sketch: Float[Array, "*batch m d"]

    def store(self, x: Float[Array, "*batch d"], dtype: Any = jnp.float16) -> Stored:
        """The bytes of `x`, with scales and norms in `dtype`."""
        x = x.astype(compute_dtype(x.dtype))
        first = self.codec.store(x, dtype)
        residual = x - self.codec.load(first)
        positive = self.sketch_query(residual) > 0
        norm = jnp.linalg.norm(residual, axis=-1, keepdims=True)
        return Stored(first, pack_bits(positive.astype(jnp.uint8), 1), stored(norm, dtype))

    def load(self, kept: Stored) -> Float[Array, "*batch d"]:
        """Vectors x_hat with `q @ x_hat == inner(q, kept)`, in fp32; their MSE is larger."""
        signs = jnp.matmul(self._signs(kept), self.sketch, precision="highest")
        return self.codec.load(kept.first) + self._weight(kept) * signs

    def inner(self, query: Float[Array, "*#batch d"], kept: Stored) -> Float[Array, "..."]:
        """Estimates of the inner products of `query` with the stored vectors, in fp32.

        Unbiased over draws of the sketch, except for the rounding of the residual's norm. Leading
        axes broadcast; for all pairs, use `query @ load(kept).T`.
        """
        query = query.astype(compute_dtype(query.dtype, "query"))
        residual = self._weight(kept) * self._signs(kept) * self.sketch_query(query)
        return (query * self.codec.load(kept.first)).sum(-1) + residual.sum(-1)

    def sketch_query(self, query: Float[Array, "*batch d"]) -> Float[Array, "*batch m"]:
        """`sketch @ query`, in fp32."""
        return jnp.matmul(query, self.sketch.swapaxes(-1, -2), precision="highest")

    def _signs(self, kept: Stored) -> Array:
        bits = unpack_bits(kept.signs, 1, self.sketch.shape[-2])
        return 2 * bits.astype(jnp.float32) - 1

    def _weight(self, kept: Stored) -> Array:
        return kept.norm.astype(jnp.float32) * (math.sqrt(math.pi / 2) / self.sketch.shape[-2])


def qjl(key: Key[Array, ""], codec: Codec, signs: int | None = None) -> QJL:
    """`codec` with a sketch of its residual.

    Args:
        key: draws the sketch.
        codec: the first stage, for vectors of length d.
        signs: m, stored signs per vector; d by default.

    Raises:
        ValueError: `signs` is not a whole number of at least 1.
    """
    dim = codec.transform.dim
    number = dim if signs is None else check_positive("signs", signs)
    return QJL(codec, jax.random.normal(key, (number, dim), jnp.float32))
