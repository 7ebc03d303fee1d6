"""Entropy of codes: the rate that entropy coding could reach."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from isojax._core.axes import SHARED
from isojax._core.checks import check_above_zero, check_choice, check_not_empty, check_positive

BINS = 4096


def code_entropy_bits(
    codes: Integer[Array, "..."], per: str = "tensor", bins: int = BINS
) -> Float[Array, ""]:
    """Plug-in entropy of integer codes, in bits per code: -sum p log2 p of their frequencies.

    `per` says which codes share one distribution: all of them (`tensor`), those of one vector
    (`token`) or of one coordinate of the last axis (`channel`); the entropies are then averaged.
    The estimate is too low by about (distinct codes - 1) / (2 ln 2 * codes) bits.

    Args:
        codes: integers.
        per: `tensor`, `token` or `channel`.
        bins: codes that differ by a multiple of `bins` are counted as one. So the entropy is exact
            if the codes span fewer than `bins`, hardly lower if a few far outliers share the bins
            of others, and at most log2(bins).

    Raises:
        ValueError: `per` is none of these, `bins` is below one, or `codes` are not integers.
    """
    _check_integers("codes", codes)
    check_choice("per", per, SHARED)
    check_positive("bins", bins)
    rows = codes.reshape(1, -1) if per == "tensor" else codes.reshape(-1, codes.shape[-1])
    rows = rows.T if per == "channel" else rows
    place = jnp.mod(rows.astype(jnp.int32), bins) + bins * jnp.arange(rows.shape[0])[:, None]
    share = jnp.bincount(place.ravel(), length=rows.shape[0] * bins) / rows.shape[1]
    return entropy_nats(share) / rows.shape[0] / jnp.log(2)


def cross_entropy_bits(
    codes: Integer[Array, "m d"],
    seen: Integer[Array, "n d"],
    bins: int = BINS,
    prior: int | float = 4,
) -> Float[Array, ""]:
    """Bits per element of `codes` in an entropy code with fixed tables made from `seen`.

    The mean of -log2 p, where p are the frequencies of `seen`, coordinate by coordinate: at least
    the entropy of `codes`, and more where their frequencies differ. Unseen codes have a nonzero
    probability: all `bins` together count as `prior` seen codes.

    Args:
        codes: integers to be coded.
        seen: integers that the tables are made from, such as codes of calibration vectors.
        bins: codes that differ by a multiple of `bins` are counted as one, as in
            `code_entropy_bits`.
        prior: weight of the uniform distribution over bins, in codes per coordinate; above 0.

    Raises:
        ValueError: the two are not integers or differ in length, or `bins` or `prior` is too small.

    References:
        Krichevsky and Trofimov, "The performance of universal encoding", 1981.
    """
    _check_integers("codes", codes)
    _check_integers("seen", seen)
    check_positive("bins", bins)
    if codes.shape[-1] != seen.shape[-1]:
        raise ValueError(f"codes and seen must have one length, got {codes.shape}, {seen.shape}.")
    check_above_zero("prior", prior)
    first = bins * jnp.arange(codes.shape[1])
    places = (jnp.mod(a.astype(jnp.int32), bins) + first[None] for a in (seen, codes))
    count = jnp.bincount(next(places).ravel(), length=bins * codes.shape[1])
    count = jnp.take(count, next(places)).astype(float)
    return -jnp.mean(jnp.log2((count + prior / bins) / (len(seen) + prior)))


def entropy_nats(share: Float[Array, "..."]) -> Float[Array, ""]:
    """-sum p ln p of the frequencies `share`; zeros add nothing, and no NaN to gradients."""
    return -jnp.sum(share * jnp.log(jnp.where(share == 0, 1, share)))


def _check_integers(name: str, codes: Array) -> None:
    check_not_empty(name, codes)
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f"{name} must have an integer dtype, got {codes.dtype}.")
