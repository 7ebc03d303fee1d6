"""Low rank and a residual: the part of a vector in a few leading axes, and the rest.

Weights and caches are often modelled as a part of few dimensions plus a remainder. The two parts
are coded with separate bits, and within each part all components count the same. So the leading
principal axes and the rest are each rotated at random, and the rank minimises the error.
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
    """The number of leading components to code separately from the rest, from 1 to d.

    With r leading components, both parts are modelled as Gaussian vectors of one variance each, v
    >= w. Their error at this rate follows from reverse water-filling over two levels: the weighted
    geometric mean of v and w times 4^-rate; or, where that exceeds w, the rest gets no bits and has
    the error w, the others v 4^(-rate d / r) (Cover and Thomas 2006, theorem 10.3.3). The result
    minimises the total over r.

    Args:
        variances: of the components, in descending order.
        rate: bits per element.

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
    tail = jnp.append(jnp.cumsum(v[::-1])[::-1][1:], 0)  # differences would lose small values
    lead = jnp.maximum(jnp.cumsum(v) / ranks, least)
    rest = jnp.maximum(tail / jnp.maximum(dim - ranks, 1), least)
    rest = jnp.where(ranks == dim, lead, rest)
    both = jnp.exp2(share * jnp.log2(lead) + (1 - share) * jnp.log2(rest) - 2 * rate)
    alone = share * lead * jnp.exp2(-2 * rate / share) + (1 - share) * rest
    return 1 + jnp.argmin(jnp.where(both <= rest, both, alone))


def low_rank(
    key: Key[Array, ""], samples: Float[Array, "n d"], rate: float | Float[Array, ""]
) -> Dense:
    """Principal axes: the leading `rank_for_rate` axes and the others, each part rotated at random.

    Args:
        key: of the two rotations, uniform on their orthogonal groups.
        samples: to fit the axes on; centre them first.
        rate: bits per element of the codes.

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
