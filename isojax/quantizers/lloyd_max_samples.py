"""Lloyd-Max codebooks of samples: pooled, or of each component apart.

Lloyd's algorithm as in `isojax.quantizers.lloyd_max`, on a histogram with counts and means: an
iteration costs no pass over the samples, and many fits run side by side under `vmap`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isojax._core.checks import check_choice, check_positive, compute_dtype
from isojax.quantizers.codebook import MOST_LEVELS, Codebook, nearest_level
from isojax.quantizers.granularity import divide, shared_scale, split
from isojax.quantizers.mixed import check_total_bytes, mixed_codebook
from isojax.quantizers.packing import MOST_BITS

BINS = 2048
SMOOTHING = 32
LINEAR = 4  # bins are even up to about 1/LINEAR mean deviations from the mean


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

    The samples are counted first, in 2048 bins that widen away from their mean, and taken to be
    evenly spread in each. A cell left empty keeps its level. Traced: works under `jit`, and under
    `vmap` over samples.

    Args:
        samples: an array like those to be quantized, pooled after dividing by the scales; finite.
        bits: 1 to 8.
        levels: number of levels, 2 to 256, in place of 2^bits; an odd number leaves one at zero
            for symmetric samples.
        steps: Lloyd iterations.
        normalize: what numbers are divided by, see `nearest_level`.
        granularity: which numbers share a scale.
        group: group length for granularity `group`, else 0.

    Raises:
        ValueError: an argument is none of the allowed values.
    """
    check_choice("bits", bits, range(1, 9))
    check_positive("steps", steps)
    number = 2**bits if levels is None else levels
    if not 2 <= number <= MOST_LEVELS:
        raise ValueError(f"levels must be 2 to {MOST_LEVELS}, got {levels!r}.")
    v = _normalized(samples, normalize, granularity, group).ravel()
    fitted = _fit(v, jnp.asarray(number), number, steps)
    return nearest_level(fitted, normalize, granularity, group)


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
    """The Lloyd-Max codebook of each component of `samples` apart, as by `lloyd_max_samples`.

    Args:
        samples: vectors like those to be quantized, divided by their scales first.
        bits: 1 to 8; or for each component 0 to 8, integers [d], which may be traced.
        total_bytes: for bits that differ, see `mixed_codebook`.
        most_bits: for bits that differ, the most there can be: a row has 2^most_bits levels.
        steps: Lloyd iterations.
        normalize: what numbers are divided by, see `nearest_level`.
        granularity: which numbers share a scale.
        group: group length for granularity `group`, else 0.

    Returns:
        A `Codebook` for one number of bits, a `MixedCodebook` for many.

    Raises:
        ValueError: an argument is none of the allowed values.
    """
    check_positive("steps", steps)
    mixed = np.ndim(bits) > 0
    if mixed:
        check_choice("most_bits", most_bits, range(1, MOST_BITS + 1))
        total_bytes = check_total_bytes(bits, total_bytes, most_bits)
    number = 2 ** (most_bits if mixed else check_choice("bits", bits, range(1, MOST_BITS + 1)))
    v = _normalized(samples, normalize, granularity, group)
    active = jnp.broadcast_to(1 << jnp.asarray(bits), samples.shape[-1:])
    levels = jax.vmap(lambda v, active: _fit(v, active, number, steps))(v.T, active)
    if not mixed:
        return nearest_level(levels, normalize, granularity, group)
    return mixed_codebook(
        levels, bits, total_bytes, normalize=normalize, granularity=granularity, group=group
    )


def _normalized(samples: Array, normalize: str, granularity: str, group: int) -> Array:
    v = split(samples.astype(compute_dtype(samples.dtype, "samples")), granularity, group)
    v = divide(v, shared_scale(v, normalize, granularity))
    return v.astype(jnp.float32).reshape(samples.shape)


def _fit(v: Array, active: Array, number: int, steps: int) -> Array:
    """The `active` levels of the samples `v` [m], and +inf up to `number` of them."""
    centre = jnp.mean(v)
    edge, mass, first = _histogram(v - centre)

    def move_to_means(_: Any, level: Array) -> Array:
        border = jnp.concatenate([edge[:1], (level[1:] + level[:-1]) / 2, edge[-1:]])
        cell = jnp.diff(jnp.interp(border, edge, mass))
        mean = jnp.diff(jnp.interp(border, edge, first)) / jnp.where(cell > 0, cell, 1)
        return jnp.where(cell > 0, jnp.clip(mean, border[:-1], border[1:]), level)

    start = _companded(edge, mass, active, number)
    return centre + jax.lax.fori_loop(0, steps, move_to_means, start)


def _histogram(v: Array) -> tuple[Array, Array, Array]:
    """Edges of bins, and the number and the sum of the centred samples `v` below each edge.

    Bins are even in asinh(LINEAR * z), z in mean deviations.
    """
    unit = jnp.mean(jnp.abs(v)) / LINEAR
    u = jnp.arcsinh(divide(v, unit))
    low, width = jnp.min(u), (jnp.max(u) - jnp.min(u)) / BINS
    place = jnp.clip(divide(u - low, width), 0, BINS - 1).astype(jnp.int32)
    edge = unit * jnp.sinh(low + width * jnp.arange(1, BINS))
    least, most = jnp.min(v), jnp.max(v)
    edge = jnp.concatenate([least[None], jnp.clip(edge, least, most), most[None]])
    count = jnp.bincount(place, length=BINS)
    total = jnp.bincount(place, v - edge[place], length=BINS) + edge[:-1] * count
    return edge, _below(count), _below(total)


def _below(bins: Array) -> Array:
    return jnp.concatenate([jnp.zeros(1), jnp.cumsum(bins.astype(jnp.float32))])


def _companded(edge: Array, mass: Array, active: Array, number: int) -> Array:
    """Levels at equal shares of the cube root of a histogram's density, in wider bins."""
    edge = edge[::SMOOTHING]
    share = jnp.cumsum(jnp.cbrt(jnp.diff(mass[::SMOOTHING]) * jnp.square(jnp.diff(edge))))
    place = jnp.arange(number)
    wanted = (place + 0.5) / active * share[-1]
    level = jnp.interp(wanted, jnp.concatenate([jnp.zeros(1), share]), edge)
    return jnp.where(place < active, level, jnp.inf)
