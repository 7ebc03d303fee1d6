"""Objectives of learned transforms: losses of a transform and samples.

Each is a scalar, differentiable in the transform, computed in fp32 (fp64 for fp64). Fixed-rate
quantization needs flat vectors (`quantization_error`, `kurtosis_loss`), entropy coding energy in
few coordinates (`log_variance`, `rate_distortion`).
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_choice
from isojax.metrics.error import computed
from isojax.metrics.shape import kurtosis
from isojax.quantizers.base import Quantizer, relative_to_scale
from isojax.transforms.base import Transform

UNIFORM = 1.8
ROUNDING = ("exact", "straight_through")
LEAST = 2.0**-10


def quantization_error(
    transform: Transform,
    x: Float[Array, "*batch d"],
    quantizer: Quantizer,
    metric: Float[Array, "d d"] | None = None,
    rounding: str = "exact",
) -> Float[Array, ""]:
    """Mean squared error of `x` quantized in the coordinates of `transform`: mean of e S e^T / d.

    `x_hat` is `transform.inverse.apply(quantizer.roundtrip(transform.apply(x)))` with recomputed
    scales, e = x_hat - x. Without S it is the MSE before the inverse transform: the same for an
    isometry, and for other transforms the error in their metric. For keys, S is the second moment
    of the queries; for a weight `w` [in, out] quantized along its inputs, `x` is `w.T`, S the
    Hessian H of the layer (`Gram.hessian`) and the loss tr(dw^T H dw) / (in out).

    The error is continuous where the nearest level changes, so its gradient at fixed codes is
    exact; but it is noisy, since errors have random directions. `straight_through` holds each error
    constant relative to its scale (Bengio et al. 2013 applied to the rounding, as in LSQ, Esser et
    al. 2020), so that gradients reach the scale and, with S, the directions. It is less noisy and
    better where scales follow peaks (`absmax`, `minmax`). It learns nothing where scales do not
    respond (`rms` and `norm` per token) and the shape of the density counts instead.

    Args:
        transform: to be learned.
        x: samples, or rows of weights.
        quantizer: of any kind.
        metric: S, symmetric and positive semidefinite; None for the identity.
        rounding: `exact` or `straight_through`.

    Raises:
        ValueError: `rounding` is neither, or `straight_through` for a quantizer without scales, or
            whose scales are not real numbers.
    """
    (x,) = computed(x)
    y = transform.apply(x)
    codes = quantizer.encode(y)
    error = quantizer.decode(codes) - y
    if check_choice("rounding", rounding, ROUNDING) == "straight_through":
        error = relative_to_scale(error, codes)
    if metric is None:
        return jnp.mean(jnp.square(error))
    error = transform.inverse.apply(error)
    return jnp.mean(error * jnp.matmul(error, metric.astype(x.dtype), precision="highest"))


def kurtosis_loss(
    transform: Transform, x: Float[Array, "*batch d"], per: str = "token"
) -> Float[Array, ""]:
    """Distance of the kurtosis of the transformed `x` from 1.8, that of the uniform density.

    A uniform density fills the levels of a uniform quantizer evenly (KurTail, Akhondzadeh et al.
    2025, arXiv 2503.01483).

    Args:
        transform: to be learned.
        x: samples.
        per: elements that share a scale: kurtosis per vector (`token`) or coordinate (`channel`),
            averaged; or of all elements (`tensor`).

    Raises:
        ValueError: `per` is none of these.
    """
    (x,) = computed(x)
    return jnp.abs(kurtosis(transform.apply(x), per) - UNIFORM)


def log_variance(
    transform: Transform, x: Float[Array, "*batch d"], noise: float | Float[Array, ""] = 0.0
) -> Float[Array, ""]:
    """Mean over coordinates of log2(v + noise) / 2, v their mean squares: bits per element.

    Up to a constant, the rate of a Gaussian at fixed error when coordinates are entropy-coded with
    one step at high rate; the difference of two transforms is the coding gain, 6.02 dB per bit. The
    axes of PCA minimise it (Goyal 2001, Theoretical foundations of transform coding). It depends
    only on the second moment of `x`.

    Args:
        transform: to be learned.
        x: samples, uncentred.
        noise: added to variances, to bound the gain from vanishing ones; step^2 / 12 makes it the
            rate at that step.
    """
    (x,) = computed(x)
    square = jnp.square(transform.apply(x)).reshape(-1, transform.out_dim)
    return jnp.mean(jnp.log2(jnp.mean(square, 0) + noise)) / 2


def rate_distortion(
    transform: Transform, x: Float[Array, "*batch d"], step: Any, weight: Any
) -> Float[Array, ""]:
    """Bits per element plus `weight` times the MSE, of `x` entropy-coded in other coordinates.

    For `ecsq(step)` with one entropy code per coordinate, by `laplace_rate` and
    `laplace_distortion`: the loss of Balle, Laparra and Simoncelli 2017 (arXiv 1611.01704, equation
    10) with a density that is fitted in place of learned. With tails heavier than a Gaussian's it
    prefers sparse coordinates among those of equal variances, which `log_variance` does not
    distinguish.

    Args:
        transform: to be learned.
        x: samples.
        step: of the quantizer; traced, so that it can be learned too.
        weight: lambda, in bits per squared unit of `x`; at 6 / (ln 2 step^2), `step` is optimal at
            high rate.
    """
    (x,) = computed(x)
    y = transform.apply(x)
    return laplace_rate(y, step) + weight * laplace_distortion(y, step)


def laplace_rate(y: Float[Array, "*batch d"], step: Any) -> Float[Array, ""]:
    """Smooth proxy of `code_entropy_bits(round(y / step), "channel")`, in bits per element.

    The code length of each element under the Laplace density with its coordinate's mean magnitude:
    of the interval of one step about the element itself, in place of its level (Balle et al. add
    noise to the same end). On Laplace samples it is within 0.05 bit of the entropy for steps up to
    the mean magnitude, and 0.1 bit below at three times that.

    Args:
        y: coefficients.
        step: of the quantizer; traced.
    """
    z, b = _in_steps(y, step)
    near, far = jnp.minimum(z, 0.5), jnp.maximum(z, 0.5)
    peak = jnp.log1p(-(jnp.exp(-(near + 0.5) / b) + jnp.exp((near - 0.5) / b)) / 2)
    tail = jnp.log(-jnp.expm1(-1 / b) / 2) - (far - 0.5) / b
    return -jnp.mean(jnp.where(z < 0.5, peak, tail)) / math.log(2)


def laplace_distortion(y: Float[Array, "*batch d"], step: Any) -> Float[Array, ""]:
    """Smooth proxy of the MSE of rounding `y` to multiples of `step`, in squared units of `y`.

    The MSE for a Laplace density per coordinate with a mean magnitude of b steps:
    2 b^2 - b / sinh(1/2b) squared steps, which is 1/12 at high rate and the variance 2 b^2 at low
    rate. With actual rounding, many parameters could overfit the position of each sample between
    levels.

    Args:
        y: coefficients.
        step: of the quantizer; traced.
    """
    half = 1 / (2 * _in_steps(y, step)[1])
    small, large = jnp.minimum(half, 0.5), jnp.clip(half, 0.5, 80.0)
    series = 1 / 6 - 7 * small**2 / 360 + 31 * small**4 / 15120
    fine = (1 - large / jnp.sinh(large)) / jnp.square(jnp.maximum(half, 0.5))
    return jnp.mean(jnp.where(half < 0.5, series, fine)) / 2 * step**2


def _in_steps(y: Array, step: Any) -> tuple[Array, Array]:
    """Magnitudes [n, d] of `y` in steps, and their means [1, d], bounded away from zero."""
    (y,) = computed(y)
    z = jnp.abs(y.reshape(-1, y.shape[-1])) / step
    return z, jnp.maximum(jnp.mean(z, 0, keepdims=True), LEAST)
