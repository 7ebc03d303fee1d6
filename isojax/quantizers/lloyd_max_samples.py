"""Lloyd-Max codebooks of samples: pooled, or one per component; see `kmeans`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isojax._core.checks import check_choice, check_not_empty, check_positive, compute_dtype
from isojax._core.finite import finite
from isojax.quantizers.codebook import MOST_LEVELS, Codebook, nearest_level
from isojax.quantizers.granularity import divide, shared_scale, split
from isojax.quantizers.kmeans import k_means
from isojax.quantizers.mixed import check_total_bytes, mixed_codebook
from isojax.quantizers.packing import MOST_BITS


def lloyd_max_samples(
    samples: Float[Array, "..."],
    bits: int,
    *,
    levels: int | None = None,
    steps: int = 200,
    normalize: str = "none",
    granularity: str = "token",
    group: int = 0,
) -> Codebook:
    """The Lloyd-Max codebook of `samples`, by `steps` of Lloyd's algorithm (k-means in 1-D).

    From the starts of `k_means`, which suit massive outliers and distant modes. Traced: works under
    `jit`, and under `vmap` over samples.

    Args:
        samples: an array like those to be quantized, pooled after dividing by the scales. Where
            they are traced and not finite, all levels are NaN.
        bits: 1 to 8.
        levels: number of levels, 2 to 256, in place of 2^bits; an odd number leaves one at zero
            for symmetric samples.
        steps: Lloyd iterations.
        normalize: divisor of the elements, see `nearest_level`.
        granularity: which elements share a scale.
        group: group length for granularity `group`, else 0.

    Raises:
        ValueError: an argument is none of the allowed values, or the samples are empty or not
            finite.
    """
    bits = check_choice("bits", bits, range(1, 9))
    check_positive("steps", steps)
    number = 2**bits if levels is None else levels
    if not 2 <= number <= MOST_LEVELS:
        raise ValueError(f"levels must be 2 to {MOST_LEVELS}, got {levels!r}.")
    v = _normalized(samples, normalize, granularity, group).ravel()
    return nearest_level(k_means(v, number, steps), normalize, granularity, group)


def lloyd_max_channels(
    samples: Float[Array, "m d"],
    bits: Any,
    *,
    total_bytes: int | None = None,
    most_bits: int = MOST_BITS,
    steps: int = 200,
    normalize: str = "none",
    granularity: str = "token",
    group: int = 0,
) -> Codebook:
    """One Lloyd-Max codebook per component of `samples`, fitted as by `lloyd_max_samples`.

    Args:
        samples: vectors like those to be quantized, divided by their scales first.
        bits: 1 to 8; or for each component 0 to 8, integers [d], which may be traced.
        total_bytes: for bits that differ, see `mixed_codebook`.
        most_bits: for bits that differ, their maximum: a row has 2^most_bits levels.
        steps: Lloyd iterations.
        normalize: divisor of the elements, see `nearest_level`.
        granularity: which elements share a scale.
        group: group length for granularity `group`, else 0.

    Returns:
        A `Codebook` for one number of bits, a `MixedCodebook` for several.

    Raises:
        ValueError: an argument is none of the allowed values, or the samples are empty or not
            finite.
    """
    check_positive("steps", steps)
    mixed = np.ndim(bits) > 0
    if mixed:
        check_choice("most_bits", most_bits, range(1, MOST_BITS + 1))
        total_bytes = check_total_bytes(bits, total_bytes, most_bits)
    number = 2 ** (most_bits if mixed else check_choice("bits", bits, range(1, MOST_BITS + 1)))
    v = _normalized(samples, normalize, granularity, group)
    if not mixed:
        levels = jax.vmap(lambda v: k_means(v, number, steps))(v.T)
        return nearest_level(levels, normalize, granularity, group)
    active = 1 << jnp.asarray(bits, jnp.int32)
    levels = jax.vmap(lambda v, active: k_means(v, number, steps, active))(v.T, active)
    return mixed_codebook(
        levels, bits, total_bytes, normalize=normalize, granularity=granularity, group=group
    )


def _normalized(samples: Array, normalize: str, granularity: str, group: int) -> Array:
    """The samples over their scales, in fp32.

    Raises:
        ValueError: there are none, or they or their scales are concrete and not finite.
    """
    check_not_empty("samples", samples)
    v = split(samples.astype(compute_dtype(samples.dtype, "samples")), granularity, group)
    scale = shared_scale(v, normalize, granularity)
    if scale is not None:
        v = divide(v, finite("the scales of samples", scale))
    return finite("samples", v.astype(jnp.float32)).reshape(samples.shape)
