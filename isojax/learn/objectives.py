"""What a learned transform is to minimise: losses of a transform and samples.

Each is a scalar that `jax.grad` reaches the transform through, computed in fp32 (fp64 for fp64).
Fixed-rate quantization asks for flat vectors (`quantization_error`, `kurtosis_loss`), entropy
coding for energy in few coordinates (`log_variance`, `rate_distortion`).
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
    """Mean squared error of `x` quantized in the coordinates of `transform`: mean of e^T S e / d.

    `x_hat` is `transform.inverse.apply(quantizer.roundtrip(transform.apply(x)))`, of recomputed
    scales, e = x_hat - x. Without S that is the MSE, taken before the way back: the same for an
    isometry, and the error in its own metric for others. For keys, S is the second moment of the
    queries that read them; for a weight `w` [in, out] quantized along its inputs, `x` is `w.T`, S
    the Hessian H of the layer (`Gram.hessian`) and the loss tr(dw^T H dw) / (in out).

    The error is continuous where the nearest level changes, so its own gradient, codes held fixed,
    is exact; but it is noisy, since errors point anywhere. `straight_through` holds each error
    relative to its scale (Bengio et al. 2013 applied to the rounding, as in LSQ, Esser et al. 2020)
    and lets the scale and, with S, the directions learn. It is less noisy and does better where
    scales follow peaks (`absmax`, `minmax`), and learns nothing where they do not respond (`rms`
    and `norm` a token), where the shape of the density counts instead.

    Args:
        transform: what learns.
        x: samples, or rows of weights.
        quantizer: of any kind.
        metric: S, symmetric and positive semidefinite; None for the identity.
        rounding: `exact` or `straight_through`.

    Raises:
        ValueError: `rounding` is neither, or `straight_through` for a quantizer whose scales are no
            real numbers, or that has none.
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
        transform: what learns.
        x: samples.
        per: kurtosis of each vector (`token`) or coordinate (`channel`), averaged; or of all
            numbers (`tensor`): those that share a scale.

    Raises:
        ValueError: `per` is none of these.
    """
    (x,) = computed(x)
    return jnp.abs(kurtosis(transform.apply(x), per) - UNIFORM)


def log_variance(
    transform: Transform, x: Float[Array, "*batch d"], noise: float | Float[Array, ""] = 0.0
) -> Float[Array, ""]:
    """Mean over coordinates of log2(v + noise) / 2, v their mean squares: bits a number.

    Up to a constant, the rate of a Gaussian at a given error when coordinates are entropy-coded
    with one step at high rate; the difference of two transforms is the coding gain, 6.02 dB a bit.
    Its minimum are the axes of PCA (Goyal 2001, Theoretical foundations of transform coding). Only
    the second moment of `x` counts: give `moment_root(x)` in its place.

    Args:
        transform: what learns.
        x: samples, uncentred.
        noise: added to variances, to bound what a vanishing one is worth; step^2 / 12 makes it the
            rate at that step.
    """
    (x,) = computed(x)
    square = jnp.square(transform.apply(x)).reshape(-1, transform.out_dim)
    return jnp.mean(jnp.log2(jnp.mean(square, 0) + noise)) / 2


def moment_root(x: Float[Array, "*batch d"]) -> Float[Array, "k d"]:
    """At most d vectors with the second moment of all vectors of `x`.

    The triangular factor of `x`, by QR. All that depends on second moments alone is the same for
    both, and faster.
    """
    (x,) = computed(x)
    rows = x.reshape(-1, x.shape[-1])
    root = jnp.linalg.qr(rows, mode="r")
    return root * math.sqrt(len(root) / len(rows))


def rate_distortion(
    transform: Transform, x: Float[Array, "*batch d"], step: Any, weight: Any
) -> Float[Array, ""]:
    """Bits a number plus `weight` times the MSE, of `x` entropy-coded in other coordinates.

    As with `ecsq(step)` and a code for each coordinate, by `laplace_rate` and `laplace_distortion`:
    the loss of Balle, Laparra and Simoncelli 2017 (arXiv 1611.01704, equation 10) with a density
    that is fitted in place of learned. Heavier tails than a Gaussian's make it prefer sparse
    coordinates among those of equal variances, where `log_variance` sees no difference.

    Args:
        transform: what learns.
        x: samples.
        step: of the quantizer; traced, so that it can learn too.
        weight: lambda, in bits a squared unit of `x`; at 6 / (ln 2 step^2), `step` is the best one
            at high rate.
    """
    (x,) = computed(x)
    y = transform.apply(x)
    return laplace_rate(y, step) + weight * laplace_distortion(y, step)


def laplace_rate(y: Float[Array, "*batch d"], step: Any) -> Float[Array, ""]:
    """Smooth stand-in for `code_entropy_bits(round(y / step), "channel")`, in bits a number.

    The code length of each number under the Laplace density of its coordinate's mean magnitude: of
    the interval of one step about the number itself, in place of about its level (Balle et al. add
    noise to the same end). On Laplace numbers within 0.05 bit of the entropy for steps up to their
    mean magnitude; below it by 0.1 bit at three times that.

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
    """Smooth stand-in for the MSE of rounding `y` to multiples of `step`, in squared units of `y`.

    That of Laplace densities with each coordinate's mean magnitude b steps: 2 b^2 - b / sinh(1/2b)
    squared steps, which is 1/12 at high rate and the variance 2 b^2 at low rate. Rounding itself
    would let many parameters learn the place of each sample between its levels.

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
    """Magnitudes [n, d] of `y` in steps, and their means [1, d], not quite zero."""
    (y,) = computed(y)
    z = jnp.abs(y.reshape(-1, y.shape[-1])) / step
    return z, jnp.maximum(jnp.mean(z, 0, keepdims=True), LEAST)
