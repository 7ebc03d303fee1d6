"""NF4: the quantiles of the normal density as a codebook, over the largest magnitude."""

from __future__ import annotations

import jax.numpy as jnp

from isojax.quantizers.codebook import Codebook, nearest_level

# bitsandbytes, `create_normal_map`: means of neighbouring quantiles of the normal density, seven
# below zero and eight above it, over the outermost (Dettmers et al. 2023, arXiv 2305.14314)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def nf4(granularity: str = "token", group: int = 0) -> Codebook:
    """NF4, four-bit NormalFloat: 16 levels for Gaussian numbers over their largest magnitude.

    Args:
        granularity: which elements share a scale, see `isojax.quantizers.granularity`; QLoRA has
            groups of 64.
        group: group length for granularity `group`, else 0.

    Raises:
        ValueError: an argument is none of the allowed values.

    References:
        Dettmers et al., "QLoRA", 2023, arXiv 2305.14314.
    """
    return nearest_level(jnp.asarray(NF4), "peak", granularity, group)
