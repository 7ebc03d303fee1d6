"""Codes of an array, and the bytes that hold them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped, UInt, UInt8

from isojax._core.pytree import pytree, static


@pytree
class Outliers:
    """Elements kept out of the codes; made by `sparse`.

    Attributes:
        values: the elements themselves.
        index: the position of each among the elements that share its scale.
    """

    values: Float[Array, "*batch k"]
    index: UInt[Array, "*batch k"]

    def stored(self, dtype: Any) -> Outliers:
        """These outliers with values in `dtype`, as by `stored`."""
        return Outliers(stored(self.values, dtype), self.index)


@pytree
class Codes:
    """The codes of one array, with scales and offsets.

    Attributes:
        values: the code of every element, in the shape of the array.
        scale: factor of the codes; broadcasts against `values` (for groups, against `values` split
            into groups). None where the quantizer needs none. One byte where the quantizer fixes
            the storage format (uint8 for E8M0).
        offset: added after scaling; like `scale`.
        bits: bits per code at fixed rate (the mean, where codes differ), or None where codes are
            unbounded (to be entropy-coded).
        outliers: elements that are stored separately, or None.
        tensor_scale: factor of the scales (NVFP4), or None.
    """

    values: Shaped[Array, "..."]
    scale: Float[Array, "..."] | UInt8[Array, "..."] | None = None
    offset: Float[Array, "..."] | None = None
    bits: int | float | None = static(default=None)
    outliers: Outliers | None = None
    tensor_scale: Float[Array, "..."] | None = None

    def unless(self, good: Bool[Array, ""]) -> Codes:
        """These codes if `good`, else with scales and offsets that are NaN."""

        def lost(part: Any) -> Any:
            if part is None or part.dtype.itemsize > 1 or part.dtype != jnp.uint8:
                return None if part is None else jnp.where(good, part, jnp.nan)
            return jnp.where(good, part, jnp.uint8(0xFF))  # NaN of E8M0

        parts = {name: lost(getattr(self, name)) for name in ("scale", "offset", "tensor_scale")}
        return dataclasses.replace(self, **parts)

    def rounded(self, dtype: Any) -> Codes:
        """These codes with scale and offset rounded to `dtype` as in `stored`, still in fp32."""

        def rounded(part: Any) -> Any:
            if part.dtype.itemsize == 1:
                return part
            # with a barrier, since XLA on GPUs removes a conversion followed by its inverse
            small = jax.lax.optimization_barrier(stored(part, dtype))
            return small.astype(part.dtype)

        scale, offset = (
            None if part is None else rounded(part) for part in (self.scale, self.offset)
        )
        return dataclasses.replace(self, scale=scale, offset=offset)


@pytree
class Packed:
    """Codes as stored: packed bits, and half-precision scales.

    Attributes:
        data: the codes of each vector along the last axis, without gaps up to its last byte.
        scale: as in `Codes`, in the storage dtype.
        offset: like `scale`.
        outliers: as in `Codes`, with values in the storage dtype.
        tensor_scale: as in `Codes`, in fp32.
        bits: as in `Codes`.
        dim: codes per vector.
        signed: whether codes were shifted by 2^(bits - 1) to be unsigned.
    """

    data: UInt8[Array, "*batch n"]
    scale: Float[Array, "..."] | UInt8[Array, "..."] | None
    offset: Float[Array, "..."] | None
    outliers: Outliers | None
    tensor_scale: Float[Array, "..."] | None
    bits: int | float = static()
    dim: int = static()
    signed: bool = static()

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored; works on shapes from `jax.eval_shape` too."""
        return nbytes(self)


def nbytes(tree: Any) -> int:
    """Bytes of all arrays in a pytree."""
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def stored(part: Shaped[Array, "..."], dtype: Any) -> Shaped[Array, "..."]:
    """`part` in the storage `dtype`; values beyond its finite range become its largest number.

    A magnitude that rounds to zero is zero. NaN stays NaN and infinity becomes NaN, so that a lost
    value does not come back as a plausible number. One-byte dtypes are unchanged.
    """
    if part.dtype.itemsize == 1:
        return part
    largest = float(jnp.finfo(dtype).max)
    held = jnp.clip(part, -largest, largest)
    return jnp.where(jnp.isinf(part), jnp.nan, held).astype(dtype)


def loaded(part: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The inverse of `stored`, in fp32; one-byte dtypes are unchanged."""
    return part if part.dtype.itemsize == 1 else part.astype(jnp.float32)
