"""All distortion metrics of one reconstruction in one call, for sweeps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_choice
from isojax._core.pytree import pytree
from isojax.metrics.error import computed, mean_cosine, pair
from isojax.metrics.firings import rms, share
from isojax.metrics.outliers import quantile_threshold

BLOCK = 2**17
MEASURE_UNITS = {
    "outlier_mse": "squared input units", "noise_floor_mse": "squared input units",
    "mse": "squared input units", "nmse": "1", "relative_error": "1", "cosine": "1",
    "false_firings": "count", "missed_firings": "count", "firing_precision": "1",
    "firing_recall": "1", "firing_f1": "1",
}  # fmt: skip


@pytree
class Thresholds:
    """Magnitudes that classify the elements of an array, in its units; made by `thresholds`.

    Attributes:
        outlier: elements at or above it are outliers.
        floor: elements at or below it are the noise floor.
        silent: elements below it are silent.
        fired: elements above it fire.
    """

    outlier: Float[Array, "..."]
    floor: Float[Array, "..."]
    silent: Float[Array, ""]
    fired: Float[Array, ""]


def thresholds(
    x: Float[Array, "*batch d"],
    top: float = 0.99,
    bottom: float = 0.90,
    silent: Any = 0.5,
    fired: Any = 1.0,
    unit: str = "abs",
    pooled: bool = True,
) -> Thresholds:
    """The thresholds of the Isotropic Tradeoff (Dev 2026) for `x`, to compute once and reuse.

    Args:
        x: the original array.
        top: quantile of |x| from which an element is an outlier, in [0, 1].
        bottom: quantile of |x| up to which an element belongs to the noise floor, in [0, 1].
        silent: threshold below which an element is silent.
        fired: threshold above which an element fires, at least `silent`.
        unit: of `silent` and `fired`: `abs` for the units of x, `rms` for multiples of its rms.
        pooled: quantiles over all elements, else per coordinate of the last axis.

    Raises:
        ValueError: `unit` is neither `abs` nor `rms`, or a Python number is out of its range.
    """
    check_choice("unit", unit, ("abs", "rms"))
    for name, q in (("top", top), ("bottom", bottom)):
        if isinstance(q, int | float) and not 0 <= q <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {q!r}.")
    if isinstance(silent, int | float) and isinstance(fired, int | float) and not silent <= fired:
        raise ValueError(f"silent must be at most fired={fired!r}, got {silent!r}.")
    (x,) = computed(x)
    one = rms(x) if unit == "rms" else jnp.ones((), x.dtype)
    outlier, floor = (quantile_threshold(x, q, pooled) for q in (top, bottom))
    return Thresholds(outlier, floor, silent * one, fired * one)


def measure(
    x: Float[Array, "*batch d"], x_hat: Float[Array, "*batch d"], at: Thresholds
) -> dict[str, Float[Array, ""]]:
    """Every metric of `error`, `outliers` and `firings`, keyed by function name.

    Their units are `MEASURE_UNITS`.

    Equal to calling each of them, but in one pass over blocks of vectors that fit the CPU cache.
    All are fp32 scalars, the counts too (exact below 2^24).

    Args:
        x: the original array.
        x_hat: its reconstruction.
        at: thresholds of the original, from `thresholds(x)`.
    """
    x, x_hat = (a.reshape(-1, a.shape[-1]) for a in pair(x, x_hat))

    def vector_sums(pair: tuple[Array, Array]) -> dict[str, Array]:
        return {name: jnp.sum(v, dtype=x.dtype) for name, v in _terms(*pair, at).items()}

    rows = jax.lax.map(vector_sums, (x, x_hat), batch_size=max(1, BLOCK // x.shape[-1]))
    total = {name: jnp.sum(row) for name, row in rows.items()}
    return {
        "outlier_mse": total["outlier_square"] / jnp.maximum(total["outlier"], 1),
        "noise_floor_mse": total["floor_square"] / jnp.maximum(total["floor"], 1),
        "mse": total["square"] / x.size,
        "nmse": total["square"] / total["xx"],
        "relative_error": jnp.sqrt(total["square"] / total["xx"]),
        "cosine": mean_cosine(rows["dot"], rows["xx"], rows["hh"]),
        "false_firings": total["false"],
        "missed_firings": total["missed"],
        "firing_precision": share(total["both"], total["made"]),
        "firing_recall": share(total["both"], total["true"]),
        "firing_f1": share(2 * total["both"], total["true"] + total["made"]),
    }


def _terms(x: Array, x_hat: Array, at: Thresholds) -> dict[str, Array]:
    """The terms that `measure` sums."""
    size, size_hat, square = jnp.abs(x), jnp.abs(x_hat), jnp.square(x_hat - x)
    outlier, floor = size >= at.outlier, size <= at.floor
    true, made = size > at.fired, size_hat > at.fired
    return {
        "square": square,
        "outlier": outlier,
        "outlier_square": jnp.where(outlier, square, 0),
        "floor": floor,
        "floor_square": jnp.where(floor, square, 0),
        "dot": x * x_hat,
        "xx": x * x,
        "hh": x_hat * x_hat,
        "true": true,
        "made": made,
        "both": true & made,
        "false": (size < at.silent) & made,
        "missed": true & (size_hat < at.silent),
    }
