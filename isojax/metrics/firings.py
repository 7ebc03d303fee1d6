"""Firings: elements above a threshold, gained or lost by quantization.

An element fires if its magnitude is above `fired`, and is silent if it is below `silent`. The two
error counts leave a margin between the thresholds; precision, recall and F1 use only `fired`.
Thresholds are in the units of x; for units of its root mean square pass `0.5 * rms(x)`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isojax.metrics.error import computed, pair


def false_firings(
    x: Float[Array, "..."], x_hat: Float[Array, "..."], silent: Any = 0.5, fired: Any = 1.0
) -> Int[Array, ""]:
    """Number of entries that are silent before and fire after: |x| < silent, |x_hat| > fired."""
    x, x_hat = pair(x, x_hat)
    return jnp.sum((jnp.abs(x) < silent) & (jnp.abs(x_hat) > fired))


def missed_firings(
    x: Float[Array, "..."], x_hat: Float[Array, "..."], silent: Any = 0.5, fired: Any = 1.0
) -> Int[Array, ""]:
    """Number of entries that fire before and are silent after: |x| > fired, |x_hat| < silent."""
    x, x_hat = pair(x, x_hat)
    return jnp.sum((jnp.abs(x) > fired) & (jnp.abs(x_hat) < silent))


def firing_precision(
    x: Float[Array, "..."], x_hat: Float[Array, "..."], fired: Any = 1.0
) -> Float[Array, ""]:
    """Share of the entries firing in `x_hat` that fire in `x`; 1 if none fires in `x_hat`."""
    both, _, made = firing_counts(x, x_hat, fired)
    return share(both, made)


def firing_recall(
    x: Float[Array, "..."], x_hat: Float[Array, "..."], fired: Any = 1.0
) -> Float[Array, ""]:
    """Share of the entries firing in `x` that fire in `x_hat`; 1 if none fires in `x`."""
    both, true, _ = firing_counts(x, x_hat, fired)
    return share(both, true)


def firing_f1(
    x: Float[Array, "..."], x_hat: Float[Array, "..."], fired: Any = 1.0
) -> Float[Array, ""]:
    """Harmonic mean of precision and recall, 2 both / (x's + x_hat's); 1 if nothing fires."""
    both, true, made = firing_counts(x, x_hat, fired)
    return share(2 * both, true + made)


def firing_counts(
    x: Float[Array, "..."], x_hat: Float[Array, "..."], fired: Any
) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Numbers of entries that fire in both, in `x`, and in `x_hat`."""
    true, made = (jnp.abs(a) > fired for a in pair(x, x_hat))
    return jnp.sum(true & made), jnp.sum(true), jnp.sum(made)


def share(part: Array, whole: Array) -> Float[Array, ""]:
    """`part / whole`, and 1 where `whole` is zero."""
    return jnp.where(whole > 0, part / jnp.maximum(whole, 1), 1.0)


def rms(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Root mean square of all elements, in the units of `x`."""
    return jnp.sqrt(jnp.mean(jnp.square(computed(x)[0])))
