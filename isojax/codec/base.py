"""A codec: a transform and a quantizer, independent of each other."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float

from isojax._core.axes import to_rank
from isojax._core.checks import check_last_axis, compute_dtype
from isojax._core.implementation import run
from isojax._core.pytree import pytree
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codes import Codes, Packed
from isojax.transforms.base import Transform


@pytree
class Codec:
    """Transform, then quantize; and back. Transformed vectors are called rotated.

    Computed in fp32 (fp64 for fp64), whatever the dtype of the input. A batch of codecs, say one
    per layer and head, is a codec whose leaves have leading axes, to be used under `vmap`.

    Attributes:
        transform: acts on `(x - offset) / scale`.
        quantizer: acts on the transformed vectors.
        offset: subtracted from `x [..., d]` and added on reading, or None for zero.
        scale: divisor of `x`, and factor on reading, or None for one; not zero.

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
        """Codes of the rotated `x`.

        Raises:
            ValueError: the last axis of `x` is not `transform.dim` long, or the quantizer is made
                for vectors of another length than the transform's.
        """
        self._check(x)
        return self.quantizer.encode(self.rotate(x))

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:
        """The vectors of the codes, rotated back, in fp32."""
        return self.unrotate(self.quantizer.decode(codes))

    def roundtrip(
        self, x: Float[Array, "*batch d"], implementation: str | None = None
    ) -> Float[Array, "*batch d"]:
        """Fake quantization: `decode(encode(x))` in the dtype of `x`; scales are not rounded.

        Args:
            x: vectors of length `transform.dim`.
            implementation: None, or one of `isojax.IMPLEMENTATIONS`: `xla` is plain JAX, `triton` a
                kernel, which by default runs on GPUs where transform and quantizer have one.

        Raises:
            ValueError: as `encode`; or the implementation does not support the arguments or cannot
                run here.
        """

        def plain(codec: Codec, x: Array) -> Array:
            y = codec.quantizer.roundtrip(codec.rotate(x))
            return codec.unrotate(y).astype(canonicalize_dtype(x.dtype))

        self._check(x)
        return run("roundtrip", implementation, plain, self, x)

    def store(
        self,
        x: Float[Array, "*batch d"],
        dtype: Any = jnp.float16,
        implementation: str | None = None,
    ) -> Packed:
        """The bytes of `x`, with scales in `dtype`.

        Scales are rounded first and codes chosen at the rounded ones, so that the result of `load`
        is as near as the quantizer allows.

        Args:
            x: vectors of length `transform.dim`.
            dtype: of scales, offsets and outliers.
            implementation: see `roundtrip`.

        Raises:
            ValueError: the quantizer has no fixed number of bits; or see `roundtrip`.
        """

        def plain(codec: Codec, x: Array) -> Packed:
            quantizer = codec.quantizer
            return quantizer.pack(quantizer.encode_rounded(codec.rotate(x), dtype), dtype)

        self._check(x)
        if jnp.dtype(dtype).itemsize < 2:
            raise ValueError(f"dtype of scales must have at least 16 bits, got {jnp.dtype(dtype)}.")
        return run("store", implementation, plain, self, x, dtype=jnp.dtype(dtype))

    def load(
        self, packed: Packed, dtype: Any = jnp.float32, implementation: str | None = None
    ) -> Float[Array, "*batch d"]:
        """The vectors of `packed`, in `dtype`; computed in fp32.

        Args:
            packed: the result of `store`.
            dtype: of the result.
            implementation: see `roundtrip`.

        Raises:
            ValueError: see `roundtrip`.
        """
        return self._load(packed, dtype, implementation, rotated=False)

    def load_rotated(
        self, packed: Packed, dtype: Any = jnp.float32, implementation: str | None = None
    ) -> Float[Array, "*batch e"]:
        """`load` before the inverse transform, without scale and offset."""
        return self._load(packed, dtype, implementation, rotated=True)

    def _load(self, packed: Packed, dtype: Any, implementation: str | None, rotated: bool) -> Array:
        dtype = jnp.dtype(dtype)
        compute_dtype(dtype, "result")

        def plain(codec: Codec, packed: Packed) -> Array:
            y = codec._decoded(packed)
            return (y if rotated else codec.unrotate(y)).astype(dtype)

        return run("load", implementation, plain, self, packed, dtype=dtype, rotated=rotated)

    def scores(
        self, query: Float[Array, "*heads d"], packed: Packed, implementation: str | None = None
    ) -> Float[Array, "*heads s"]:
        """Inner products of queries with packed keys, minus `query @ offset`, in fp32.

        `rotate_query(query) @ load_rotated(packed).T`; the term left out is the same for all keys
        and cancels in the softmax. Not scaled by d^-1/2.

        Args:
            query: vectors of length `transform.dim`.
            packed: the result of `store` of keys [s, d].
            implementation: see `roundtrip`.

        Raises:
            ValueError: the last axis of `query` is not `transform.dim` long, `packed` is not of
                keys [s, d]; or see `roundtrip`.
        """
        check_last_axis("query", query, self.transform.dim)
        if packed.data.ndim != 2:
            raise ValueError(f"packed must be of keys [s, d], got codes {packed.data.shape}.")

        def plain(codec: Codec, query: Array, packed: Packed) -> Array:
            q, k = codec.rotate_query(query), codec._decoded(packed)
            return jnp.einsum("...d,sd->...s", q, k, precision="highest")

        return run("scores", implementation, plain, self, query, packed)

    def _check(self, x: Array) -> None:
        check_last_axis("x", x, self.transform.dim)
        lengths = {self.transform.dim: None, self.transform.out_dim: None}  # before and after zeros
        if self.quantizer.dim and self.quantizer.dim not in lengths:
            allowed = " or ".join(map(str, lengths))
            raise ValueError(
                f"quantizer must be for vectors of length {allowed}, that of the transform; "
                f"got one for {self.quantizer.dim}."
            )

    def _decoded(self, packed: Packed) -> Array:
        return self.quantizer.decode(self.quantizer.unpack(packed))

    def rotate(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch e"]:
        """`transform.apply((x - offset) / scale)`, in fp32."""
        x = x.astype(compute_dtype(x.dtype))
        x = x if self.offset is None else x - to_rank(self.offset, x.ndim)
        return self.transform.apply(x if self.scale is None else x / to_rank(self.scale, x.ndim))

    def unrotate(self, y: Float[Array, "*batch e"]) -> Float[Array, "*batch d"]:
        """The inverse of `rotate`."""
        x = self.transform.inverse.apply(y)
        x = x if self.scale is None else x * to_rank(self.scale, x.ndim)
        return x if self.offset is None else x + to_rank(self.offset, x.ndim)

    def rotate_query(self, query: Float[Array, "*batch d"]) -> Float[Array, "*batch e"]:
        """`transform.dual.apply(query * scale)`, in fp32, for products with rotated vectors.

        `query @ load(p) == rotate_query(query) @ load_rotated(p) + query @ offset`; the last term
        is the same for all vectors stored with one offset, and cancels in the softmax.
        """
        query = query.astype(compute_dtype(query.dtype, "query"))
        query = query if self.scale is None else query * to_rank(self.scale, query.ndim)
        return self.transform.dual.apply(query)
