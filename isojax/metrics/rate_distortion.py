"""Rate and distortion: bounds for codes of Gaussian vectors, and the allocation of bits.

Rates and entropies are in bits per element, distortions mean squared errors per element. Variances
are those of independent components; for correlated ones, the eigenvalues of the covariance. All
functions take one vector of `variances`; use `vmap` for many.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from isojax._core.axes import SHARED, to_rank
from isojax._core.checks import check_choice, check_positive
from isojax._core.finite import check_finite
from isojax.metrics.error import computed

# Mean squared error of the Lloyd-Max quantizer of a unit Gaussian at 0 to 8 bits (Max 1960,
# recomputed to six digits and continued).
LLOYD_MAX_MSE = (
    1.0, 0.3633802, 0.1174818, 0.03454776, 0.009501008,
    0.002504668, 6.442397e-4, 1.634782e-4, 4.118508e-5,
)  # fmt: skip


def gaussian_entropy_bits(spread: Float[Array, "d"] | Float[Array, "d d"]) -> Float[Array, ""]:
    """Differential entropy of a Gaussian vector: log2(2 pi e sigma^2) / 2 of its components.

    Args:
        spread: variances, or the covariance matrix. A zero variance gives -inf.

    References:
        Cover and Thomas, "Elements of Information Theory", theorem 8.4.1.
    """
    (spread,) = computed(spread)
    variances = spread if spread.ndim == 1 else jnp.linalg.eigvalsh(spread)
    return (math.log2(2 * math.pi * math.e) + jnp.mean(jnp.log2(variances))) / 2


def coding_gain_db(variances: Float[Array, "d"]) -> Float[Array, ""]:
    """Arithmetic over geometric mean of the variances, in dB.

    The gain at high rate of entropy coding with one step over coordinates with equal variances of
    the same sum: 0 after a rotation that equalises variances, largest in principal axes, infinite
    if a variance is zero.

    References:
        Goyal, "Theoretical foundations of transform coding", 2001.
    """
    (variances,) = computed(variances)
    gain = jnp.log10(jnp.mean(variances)) - jnp.mean(jnp.log10(variances))
    return 10 * gain


def shannon_distortion(
    variances: Float[Array, "d"], rate_bits: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The least mean squared error at a rate, by reverse water-filling.

    Components above the water level theta have the error theta, the others their variance. For
    the k largest variances, the level is (their product)^(1/k) 2^(-2 d R / k); theta is the largest
    of these over k.

    References:
        Cover and Thomas, theorem 10.3.3.
    """
    (variances,) = computed(variances)
    logs = jnp.sort(jnp.log(variances), descending=True)
    dim = logs.shape[0]
    spent = 2 * dim * math.log(2) * jnp.asarray(rate_bits, logs.dtype)
    level = jnp.exp(jnp.max((jnp.cumsum(logs) - spent) / jnp.arange(1, dim + 1, dtype=logs.dtype)))
    return jnp.mean(jnp.minimum(variances, level))


def shannon_rate(variances: Float[Array, "d"], mse: float | Float[Array, ""]) -> Float[Array, ""]:
    """The least rate at a mean squared error above zero: the inverse of `shannon_distortion`.

    With the k smallest variances below the water level, the others share the remaining error; the
    level is the largest of these shares over k. The rate is 0 for errors above the mean variance.
    """
    (variances,) = computed(variances)
    dim = variances.shape[0]
    ordered = jnp.sort(variances)
    below = jnp.cumsum(ordered) - ordered
    total = dim * jnp.asarray(mse, ordered.dtype)
    level = jnp.max((total - below) / jnp.arange(dim, 0, -1, dtype=ordered.dtype))
    saved = jnp.where(variances <= level, 0, jnp.log2(jnp.maximum(variances, level) / level))
    return jnp.mean(saved) / 2


def distance_to_shannon_db(
    mse: float | Float[Array, ""],
    rate_bits: float | Float[Array, ""],
    variances: Float[Array, "d"],
) -> Float[Array, ""]:
    """Distance of a code to the bound: `mse` over the least MSE at `rate_bits`, in dB.

    1.53 dB for entropy-coded scalar quantization at high rate (Gish and Pierce 1968).
    """
    return 10 * jnp.log10(mse / shannon_distortion(variances, rate_bits))


def differential_entropy_bits(
    x: Float[Array, "..."], per: str = "tensor", window: int | None = None
) -> Float[Array, ""]:
    """Differential entropy of samples per element, in bits, without a model of their density.

    From the gap between the `window`-th neighbours of each sample to its left and right, fewer at
    the ends: the mean of log(gap of k steps) - psi(k) + psi(n + 1), which is unbiased for a uniform
    density. Entropy-coded with a fine step, the samples take this minus log2(step) bits each.

    Args:
        x: samples. Where more than `window` of them are equal they have no density, and the result
            is -inf.
        per: which of them share one density, as in `code_entropy_bits`; the entropies are averaged.
        window: neighbours on each side; by default half the root of the number of samples, rounded.

    Raises:
        ValueError: `per` is unknown, or `window` is not a whole number from 1 to below the number
            of samples.

    References:
        Vasicek, "A test for normality based on sample entropy", 1976; the gaps at the ends as in
        Ebrahimi et al., "Two measures of sample entropy", 1994; psi as in van Es, 1992.
    """
    check_choice("per", per, SHARED)
    (x,) = computed(x)
    rows = x.reshape(1, -1) if per == "tensor" else x.reshape(-1, x.shape[-1])
    rows = jnp.sort(rows.T if per == "channel" else rows, -1)
    number = rows.shape[1]
    window = max(1, round(math.sqrt(number) / 2)) if window is None else window
    if check_positive("window", window) >= number:
        raise ValueError(f"window must be below the {number} samples of a density, got {window}.")
    at = np.arange(number)
    low, high = np.maximum(at - window, 0), np.minimum(at + window, number - 1)
    psi = jax.scipy.special.digamma
    nats = jnp.mean(jnp.log(rows[:, high] - rows[:, low])) + psi(jnp.asarray(number + 1.0))
    return (nats - jnp.mean(psi(jnp.asarray(high - low, rows.dtype)))) / math.log(2)


def allocate_bits(
    variances: Float[Array, "d"],
    mean_bits: int | float,
    most: int = 8,
    distortions: Any = LLOYD_MAX_MSE,
) -> Integer[Array, "d"]:
    """Whole bits per component with the least total error: reverse water-filling at fixed rate.

    Each bit goes where it reduces the error most, which is optimal where every further bit reduces
    it less than the one before. Traced: `vmap` over layers and heads.

    Args:
        variances: the error of each component at a distortion of 1; weights may be multiplied in.
        mean_bits: bits per component; d times this must be a whole number.
        most: maximum of the bits of a component.
        distortions: error at 0, 1, ... bits over the variance, [most + 1] or more; or [d, most + 1]
            for components that differ. By default Lloyd-Max on a Gaussian, up to 8 bits.

    Returns:
        Integers from 0 to `most`, of sum d * mean_bits.

    Raises:
        ValueError: `mean_bits` is out of range or d times it no whole number, `distortions` ends
            before `most`, or `variances` are concrete and not finite. Where traced, components of
            NaN get bits last.

    References:
        Fox, "Discrete optimization via marginal analysis", 1966; Segall, "Bit allocation and
        encoding for vector sources", 1976.
    """
    (variances,) = computed(variances)
    check_finite("variances", variances)
    dim = variances.shape[0]
    allowed = 0 <= mean_bits <= check_positive("most", most)
    total = round(dim * mean_bits) if allowed else 0
    if not (allowed and math.isclose(total, dim * mean_bits, abs_tol=1e-6)):
        raise ValueError(
            f"mean_bits must be from 0 to {most} with a whole number of bits in all, "
            f"got {mean_bits!r} for {dim} components."
        )
    if np.shape(distortions)[-1] <= most:
        raise ValueError(
            f"distortions must reach most={most} bits, got shape {np.shape(distortions)}."
        )
    table = jnp.asarray(distortions, variances.dtype)[..., : most + 1]
    gains = variances[:, None] * to_rank(table[..., :-1] - table[..., 1:], 2)
    gains = jnp.where(jnp.isnan(gains), -jnp.inf, gains)
    best = jnp.argsort(gains.ravel(), descending=True)[:total]
    return jnp.zeros(dim, jnp.int32).at[best // most].add(1)
