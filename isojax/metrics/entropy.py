"""Entropy of codes: the rate that entropy coding could reach."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from isojax._core.axes import SHARED
from isojax._core.checks import check_choice, check_positive


def code_entropy_bits(
    codes: Integer[Array, "..."], per: str = "tensor", bins: int = 4096
) -> Float[Array, ""]:
    """Plug-in entropy of integer codes, in bits a number: -sum p log2 p of their frequencies.

    `per` says which codes share one distribution: all of them (`tensor`), those of one vector
    (`token`) or of one coordinate of the last axis (`channel`); the entropies are then averaged.
    The estimate is low by about (distinct codes - 1) / (2 ln 2 * codes) bits.

    Args:
        codes: integers.
        per: `tensor`, `token` or `channel`.
        bins: codes that differ by a multiple of `bins` are counted as one. So the entropy is that
            of the codes if they span fewer than `bins`, low by next to nothing if a few far
            outliers share the bins of others, and at most log2(bins).

    Raises:
        ValueError: `per` is none of these, `bins` is below one, or `codes` are not integers.
    """
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f"codes must have an integer dtype, got {codes.dtype}.")
    check_choice("per", per, SHARED)
    check_positive("bins", bins)
    rows = codes.reshape(1, -1) if per == "tensor" else codes.reshape(-1, codes.shape[-1])
    rows = rows.T if per == "channel" else rows
    place = jnp.mod(rows.astype(jnp.int32), bins) + bins * jnp.arange(rows.shape[0])[:, None]
    share = jnp.bincount(place.ravel(), length=rows.shape[0] * bins) / rows.shape[1]
    return -jnp.sum(jax.scipy.special.xlogy(share, share)) / rows.shape[0] / jnp.log(2)
