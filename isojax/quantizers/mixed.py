"""Codebooks whose components have different numbers of bits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer, UInt8

from isojax._core.checks import check_choice
from isojax._core.pytree import pytree, static
from isojax.quantizers.codebook import Codebook, sorted_levels
from isojax.quantizers.codes import Codes, Packed
from isojax.quantizers.granularity import NORMALIZE, check_granularity
from isojax.quantizers.packing import MOST_BITS, pack_mixed, unpack_mixed


@pytree
class MixedCodebook(Codebook):
    """A codebook [d, n] of which row i has 2^widths[i] levels; made by `mixed_codebook`.

    A component of 0 bits takes no storage and decodes to its single level.

    Attributes:
        widths: bits of each component; a leaf, so that layers and heads may differ under `vmap`.
        total_bytes: bytes of the codes of one vector.
    """

    widths: Integer[Array, "*batch d"]
    total_bytes: int = static()

    @property
    def bits(self) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Mean bits per code, as stored."""
        return 8 * self.total_bytes / self.widths.shape[-1]

    def pack_values(self, codes: Codes) -> UInt8[Array, "*batch n"]:  # noqa: D102
        return pack_mixed(codes.values, self.widths, self.total_bytes)

    def unpack_values(self, packed: Packed) -> UInt8[Array, "*batch d"]:  # noqa: D102
        return unpack_mixed(packed.data, self.widths)


def mixed_codebook(
    levels: Float[Array, "d n"],
    bits: Any,
    total_bytes: int | None = None,
    *,
    normalize: str = "none",
    granularity: str = "token",
    group: int = 0,
) -> MixedCodebook:
    """The codebook that keeps the 2^bits[i] lowest of row i of `levels`, which it sorts.

    Args:
        levels: 2 to 256 per component; a row may end in +inf.
        bits: 0 to 8 for each component, with 2^bits at most n; integers [d], which may be traced.
        total_bytes: bytes of the codes of one vector: at least sum(bits) / 8, which is the default
            for bits that are not traced. For traced bits nothing can be checked: codes whose bits
            do not fit are lost, and decode to the lowest levels that remain possible.
        normalize: divisor of the elements, see `nearest_level`.
        granularity: which elements share a scale.
        group: group length for granularity `group`, else 0.

    Raises:
        ValueError: an argument is none of the allowed values, or `total_bytes` too small or None.
    """
    levels = sorted_levels(levels)
    dim, number = levels.shape[-2:] if levels.ndim == 2 else (0, 0)
    if np.shape(bits) != (dim,):
        raise ValueError(
            f"bits must be one number per row of levels, got shapes {np.shape(bits)} and "
            f"{levels.shape}."
        )
    total_bytes = check_total_bytes(bits, total_bytes, most=(number - 1).bit_length())
    check_choice("normalize", normalize, NORMALIZE)
    check_granularity(granularity, group)
    widths = jnp.asarray(bits, jnp.int32)
    kept = jnp.arange(number)[None] < (1 << widths)[:, None]
    levels = jnp.where(kept, levels, jnp.inf)
    return MixedCodebook(levels, normalize, granularity, group, False, widths, total_bytes, dim=dim)


def check_total_bytes(bits: Any, total_bytes: int | None, most: int = MOST_BITS) -> int:
    """`total_bytes`, or the bytes of `bits` where it is None.

    Raises:
        ValueError: it is None for traced bits or too small, or an element of `bits` is not 0 to
            `most`.
    """
    if not jnp.issubdtype(jnp.asarray(bits).dtype, jnp.integer):
        raise ValueError(f"bits must be integers, got dtype {jnp.asarray(bits).dtype}.")
    if isinstance(bits, Tracer):
        if total_bytes is None:
            raise ValueError("total_bytes must be given for bits that are traced, got None.")
        return total_bytes
    bits = np.asarray(bits)
    if bits.min() < 0 or bits.max() > most:
        raise ValueError(f"bits must be integers from 0 to {most}, got {bits.tolist()}.")
    least = -(-int(bits.sum()) // 8)
    if total_bytes is not None and total_bytes < least:
        raise ValueError(f"total_bytes must be at least {least} for these bits, got {total_bytes}.")
    return least if total_bytes is None else total_bytes
