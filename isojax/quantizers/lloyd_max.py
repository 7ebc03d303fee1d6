"""Lloyd-Max codebooks of densities: the levels with the least mean squared error.

Each level is the mean of its cell and each cell border the middle of two levels (Lloyd 1957/1982,
Max 1960). The iteration alternates between both conditions, from levels spaced by the cube root of
the density, which is the best spacing at high rate (Panter and Dite 1951).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from isojax._core.checks import check_choice, check_positive
from isojax.quantizers.codebook import Codebook, nearest_level

HOST_STEPS = 1000
BINS = 4096


def lloyd_max_gaussian(
    bits: int, dim: int = 1, *, normalize: str = "rms", granularity: str = "token", group: int = 0
) -> Codebook:
    """The Lloyd-Max codebook of the normal density N(0, 1/dim) (Max 1960, table I, for `dim` 1).

    Args:
        bits: 1 to 8.
        dim: 1 for unit variance, as with `normalize` "rms"; the length of the vectors for "norm".
        normalize: divisor of the elements, see `nearest_level`.
        granularity: which elements share a scale.
        group: group length for granularity `group`, else 0.

    Raises:
        ValueError: an argument is none of the allowed values.
    """
    levels = jnp.asarray(_gaussian_levels(check_choice("bits", bits, range(1, 9))))
    levels = levels / math.sqrt(check_positive("dim", dim))
    return nearest_level(levels, normalize, granularity, group, True, _whole(dim, granularity))


def lloyd_max_sphere(
    bits: int, dim: int, *, normalize: str = "norm", granularity: str = "token", group: int = 0
) -> Codebook:
    """The Lloyd-Max codebook of one coordinate of a uniformly random unit vector.

    Its density is f(z) ~ (1 - z^2)^((dim - 3) / 2) on [-1, 1]: the arcsine law for `dim` 2, the
    uniform for 3, the semicircle for 4, close to N(0, 1/dim) for many (TurboQuant, Zandieh et al.
    2026, lemma 1).

    Args:
        bits: 1 to 8.
        dim: dimension of the sphere's space, at least 2: the length of the rotated block.
        normalize: divisor of the elements, see `nearest_level`; `norm` gives unit vectors.
        granularity: which elements share a scale.
        group: group length for granularity `group`, else 0.

    Raises:
        ValueError: an argument is none of the allowed values.
    """
    bits = check_choice("bits", bits, range(1, 9))
    dim = check_positive("dim", dim)
    if dim < 2:
        raise ValueError(f"dim must be at least 2, got {dim}.")
    levels = jnp.asarray(_sphere_levels(bits, dim))
    return nearest_level(levels, normalize, granularity, group, True, _whole(dim, granularity))


def _whole(dim: int, granularity: str) -> int:
    """Length of the vectors for levels of `dim` elements per scale, 0 for any."""
    return dim if granularity == "token" and dim > 1 else 0


@functools.cache
def _gaussian_levels(bits: int) -> np.ndarray:
    def moments(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mass = np.array([math.erf(v / math.sqrt(2)) / 2 for v in z])
        return mass, -np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    middles = _middles(12.0)
    return _lloyd(moments, _companded(middles, np.exp(-(middles**2) / 2), 2**bits), 12.0)


@functools.cache
def _sphere_levels(bits: int, dim: int) -> np.ndarray:
    # With z = sin t, f(z) dz ~ cos^(dim-2) t dt; the reduction formula of its integral gives powers
    # of the cosine and, at last, the integral of cos^0 or cos^1.
    powers, factors, last, n = [], [], 1.0, dim - 2
    while n > 1:
        powers.append(n - 1)
        factors.append(last / n)
        last, n = last * (n - 1) / n, n - 2
    total = last * (2.0 if dim % 2 else math.pi)

    def moments(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cosine = np.sqrt(1 - z**2)
        mass = z * (cosine[:, None] ** np.array(powers) @ np.array(factors))
        mass = mass + last * (z if dim % 2 else np.arcsin(z))
        return mass / total, -(cosine ** (dim - 1)) / (dim - 1) / total

    end = min(1.0, 12 / math.sqrt(dim))
    middles = _middles(end)
    levels = _companded(middles, (1 - middles**2) ** ((dim - 3) / 2), 2**bits)
    return _lloyd(moments, levels, 1.0)


def _lloyd(
    moments: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], levels: np.ndarray, end: float
) -> np.ndarray:
    """Lloyd's algorithm on a symmetric density.

    `moments(z)` gives the integrals of f and of z f up to z, each to within a constant; the
    density lies on [-end, end]. The levels are read-only, to be cached.
    """
    for _ in range(HOST_STEPS):
        borders = np.concatenate([[-end], (levels[1:] + levels[:-1]) / 2, [end]])
        mass, first = map(np.diff, moments(borders))
        levels = first / mass
        levels = (levels - levels[::-1]) / 2
    levels.flags.writeable = False
    return levels


def _middles(end: float) -> np.ndarray:
    borders = np.linspace(-end, end, BINS + 1)
    return (borders[1:] + borders[:-1]) / 2


def _companded(middles: np.ndarray, density: np.ndarray, number: int) -> np.ndarray:
    """Levels at equal shares of the cube root of the density, which is given at `middles`."""
    share = np.cumsum(np.cbrt(density))
    return np.interp((np.arange(number) + 0.5) / number * share[-1], share, middles)
