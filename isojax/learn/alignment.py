"""Aligned axes: the Karhunen-Loeve transform, in the metric of the queries or weights.

A key k enters attention in products q . k with queries q. If its code has the error e, the logits
are off by q . e, whose mean square is e S e^T with S the second moment of the queries: that error,
and not |e|^2, should decide where bits go. Likewise values have S = W W^T, W the output projection,
and weights the second moment of the layer's inputs. With y = x S^(1/2) U the error is
|y - y_hat|^2, and the U that gathers most of it in few components holds the eigenvectors of
S^(1/2) C S^(1/2), where C is the second moment of x (for S = 1 this is PCA).
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_above_zero, check_positive, compute_dtype
from isojax._core.finite import finite, unless
from isojax.learn.fit import fit, minibatch
from isojax.learn.objectives import rate_distortion
from isojax.learn.stiefel import stiefel
from isojax.quantizers import ecsq_for_rate
from isojax.transforms import Dense, Oblique, pca


def aligned(
    moment: Float[Array, "d d"],
    metric: Float[Array, "d d"] | None = None,
    *,
    power: float | Float[Array, ""] = 1.0,
    ridge: float | Float[Array, ""] = 1e-3,
) -> Oblique:
    """The axes with the least rate for vectors of this second moment, by descending energy.

    Args:
        moment: C, the second moment of the vectors, see `second_moment`; centre them first.
        metric: S, in which errors count: symmetric, positive semidefinite. None for plain PCA.
        power: exponent of the eigenvalues of the metric: 1 uses it unchanged, 0 ignores it. Values
            in between leave fewer components without bits at low rates (as `log_spectrum` does).
        ridge: share of the mean eigenvalue that is added to all eigenvalues of the metric, so that
            directions unseen in calibration still count. A metric of zeros counts as the identity.

    Returns:
        The axes; NaN where `moment` or `metric` is traced and an error below would be raised.

    Raises:
        ValueError: the shapes differ; a Python number among `power` and `ridge` is negative or not
            finite; `moment` or `metric` is not finite; or `metric`, with its ridge, is singular.
    """
    if metric is not None and metric.shape != moment.shape:
        raise ValueError(f"metric must have shape {moment.shape}, got {metric.shape}.")
    for name, value in (("power", power), ("ridge", ridge)):
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value!r}.")
    moment = finite("moment", moment.astype(compute_dtype(moment.dtype)))
    root = back = jnp.eye(moment.shape[-1], dtype=moment.dtype)
    if metric is not None:
        size, axes = jnp.linalg.eigh(finite("metric", metric.astype(moment.dtype)))
        mean = jnp.mean(size)
        size = jnp.maximum(size, 0) + ridge * jnp.where(mean > 0, mean, 1)
        size = _regular(size, jnp.asarray(power) > 0) ** (power / 2)
        root, back = (_product(axes * s[None], axes.T) for s in (size, 1 / size))
    _, turn = jnp.linalg.eigh(_product(_product(root, moment), root))
    turn = turn[:, ::-1]
    return Oblique(_product(root, turn), _product(turn.T, back))


def _regular(size: Float[Array, " d"], needed: Array) -> Float[Array, " d"]:
    """Eigenvalues of a metric, checked to be invertible where `needed`."""
    least = len(size) * jnp.finfo(size.dtype).eps * jnp.max(size)
    good = (jnp.min(size) > least) | ~needed
    if not isinstance(good, Tracer) and not good:
        raise ValueError(
            f"metric must be positive definite, with a ridge above 0 if need be; got eigenvalues "
            f"from {jnp.min(size):.3g} to {jnp.max(size):.3g}."
        )
    return unless(good, size)


def log_spectrum(metric: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The metric with log(1 + s) in place of each eigenvalue s, in units of their mean; fp32.

    Large eigenvalues then count for less: at low rates the metric itself gathers too many bits in
    too few components. The logarithm follows SMAQ, as far as we know it.

    Args:
        metric: as for `aligned`; zeros stay zeros.

    Raises:
        ValueError: `metric` is concrete and not finite.
    """
    size, axes = jnp.linalg.eigh(finite("metric", metric.astype(compute_dtype(metric.dtype))))
    size = jnp.maximum(size, 0)
    mean = jnp.mean(size)
    weight = jnp.log1p(size / jnp.where(mean == 0, 1, mean))
    return _product(axes * weight[None], axes.T)


def learned_alignment(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    rate: float = 3.0,
    *,
    steps: int = 200,
    batch: int = 256,
    learning_rate: float | Float[Array, ""] = 3e-3,
) -> Dense:
    """Axes learned for entropy coding, by descent on rate plus lambda times distortion.

    Adam on the orthogonal group (see `stiefel`), from the principal axes, minimises
    `rate_distortion` at the step at which the principal axes take `rate` bits per element.

    Args:
        key: draws the minibatches.
        x: vectors to learn from; centre them first.
        rate: bits per element of the entropy coder.
        steps: of descent.
        batch: vectors per step, drawn with replacement.
        learning_rate: of Adam, above 0.

    Raises:
        ValueError: an argument is not allowed, the dtype of `x` is not floating, or `x` is
            concrete and not finite (where traced, the result is NaN).
    """
    check_above_zero("learning_rate", learning_rate)
    x = x.astype(compute_dtype(x.dtype))
    start = pca(x)
    step = ecsq_for_rate(start.apply(x), rate, "channel").step
    weight = 6 / (math.log(2) * jnp.square(step))

    def concentrate(axes: Any, key: Array) -> Array:
        return rate_distortion(axes, minibatch(key, x, batch), step, weight)

    optimizer = stiefel(optax.adam(learning_rate))
    checks = math.gcd(check_positive("steps", steps), 10)
    return fit(concentrate, start, optimizer, key=key, steps=steps, checks=checks)[0]


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
