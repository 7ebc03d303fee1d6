"""Low rank and a residual: a vector's part in a few leading axes, and what is left of it.

Weights and caches are often said to be a part of few dimensions plus a remainder. Coded, the two
parts get bits of their own, and within each all components are worth the same: so the leading
principal axes and the rest are each rotated at random, and the rank is that which costs least.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from isojax._core.checks import compute_dtype
from isojax._core.finite import finite
from isojax.transforms import Dense, pca


def rank_for_rate(variances: Float[Array, " d"], rate: float | Float[Array, ""]) -> Int[Array, ""]:
    """How many leading components to code apart from the rest, from 1 to d (all of them).

    With r of them apart, both parts are like Gaussian vectors of one variance each, v >= w, and
    reverse water-filling over two levels says what error they leave at this rate: the weighted
    geometric mean of v and w times 4^-rate, or where that exceeds w, and the rest gets no bits, w
    for the rest and v 4^(-rate d / r) for the others (Cover and Thomas 2006, theorem 10.3.3). The
    least is taken over all r.

    Args:
        variances: of the components, in descending order.
        rate: bits a number.

    Raises:
        ValueError: `rate` is a Python number below 0 or not finite, or `variances` are concrete
            and not finite.
    """
    if isinstance(rate, int | float) and not 0 <= rate < math.inf:
        raise ValueError(f"rate must be at least 0 and finite, got {rate!r}.")
    v = finite("variances", variances.astype(compute_dtype(variances.dtype)))
    dim = v.shape[-1]
    ranks = jnp.arange(1, dim + 1, dtype=v.dtype)
    share, least = ranks / dim, jnp.finfo(v.dtype).tiny
    tail = jnp.append(jnp.cumsum(v[::-1])[::-1][1:], 0)  # differences would lose what is small
    lead = jnp.maximum(jnp.cumsum(v) / ranks, least)
    rest = jnp.maximum(tail / jnp.maximum(dim - ranks, 1), least)
    rest = jnp.where(ranks == dim, lead, rest)
    both = jnp.exp2(share * jnp.log2(lead) + (1 - share) * jnp.log2(rest) - 2 * rate)
    alone = share * lead * jnp.exp2(-2 * rate / share) + (1 - share) * rest
    return 1 + jnp.argmin(jnp.where(both <= rest, both, alone))


def low_rank(
    key: Key[Array, ""], samples: Float[Array, "n d"], rate: float | Float[Array, ""]
) -> Dense:
    """Principal axes, the leading `rank_for_rate` of them and the others each rotated at random.

    Args:
        key: of the two rotations, uniform on their orthogonal groups.
        samples: to fit the axes on; centre them first.
        rate: bits a number that the codes are to take.

    Raises:
        ValueError: `samples` is not a matrix with at least one row, or not finite, see `pca`; or
            `rate` is a Python number below 0 or not finite.
    """
    axes = pca(samples)
    variances = jnp.mean(jnp.square(axes.apply(samples.astype(jnp.float32))), axis=0)
    leads = jnp.arange(len(variances)) < rank_for_rate(variances, rate)
    # the QR decomposition of two Gaussian blocks on a diagonal, whatever their sizes
    together = leads[:, None] == leads[None]
    entries = axes.entries
    drawn = jnp.where(together, jax.random.normal(key, entries.shape, entries.dtype), 0)
    turn, upper = jnp.linalg.qr(drawn)
    turn = turn * jnp.where(jnp.diagonal(upper) < 0, -1.0, 1.0)[None]
    return Dense(jnp.matmul(entries, turn, precision="highest"))
