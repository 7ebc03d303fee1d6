"""Uniform quantizers: evenly spaced levels, symmetric about zero or from minimum to maximum."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_choice, check_positive, compute_dtype
from isojax._core.finite import power_of_two
from isojax._core.pytree import pytree, static
from isojax._core.quantile import quantile
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codes import Codes
from isojax.quantizers.granularity import (
    check_granularity,
    divide,
    root,
    scale_axes,
    split,
)

SYMMETRIC = ("restricted", "balanced", "full")
ASYMMETRIC = ("zero_point", "affine")
DEFAULT_CLIP = {"max": 1.0, "percentile": 0.999, "std": 4.0, "mse": 1.0}
LOWEST_RATIO = 0.01
CAREFUL = 1 - 1e-5  # for sums in fp32


@pytree
class Uniform(Quantizer):
    """Evenly spaced levels over a range taken from the data; made by `absmax` and `minmax`.

    Attributes:
        clip: the part of the range to keep; its meaning depends on `range_rule`.
        bits: 2 to 8.
        granularity: which elements share a range, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0.
        grid: positions of the levels, see `absmax` and `minmax`.
        range_rule: rule for the range, see `absmax`.
        steps: clip ratios tried by the range rule `mse`.
    """

    clip: Float[Array, ""]
    bits: int = static()
    granularity: str = static()
    group: int = static()
    grid: str = static()
    range_rule: str = static()
    steps: int = static()

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        v = split(y.astype(compute_dtype(y.dtype, "y")), self.granularity, self.group)
        scale, offset = self._grid(*self._range(v))
        return self._codes(self._round(v, scale, offset).reshape(y.shape), scale, offset)

    def encode_like(self, y: Float[Array, "*batch d"], codes: Codes) -> Codes:  # noqa: D102
        v = split(y.astype(compute_dtype(y.dtype, "y")), self.granularity, self.group)
        values = self._round(v, codes.scale, codes.offset)
        return self._codes(values.reshape(y.shape), codes.scale, codes.offset)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        v = split(codes.values, self.granularity, self.group)
        return self._place(v, codes.scale, codes.offset).reshape(codes.values.shape)

    def _codes(self, values: Array, scale: Any, offset: Any) -> Codes:
        dtype = jnp.int8 if self.grid in SYMMETRIC else jnp.uint8
        return Codes(values.astype(dtype), scale, offset, self.bits)

    def _range(self, v: Array) -> tuple[Array, Array]:
        """The lowest and the highest value to represent, for each scale."""
        axes, clip = scale_axes(v.ndim, self.granularity), self.clip.astype(v.dtype)
        symmetric = self.grid in SYMMETRIC
        if self.range_rule == "percentile":
            high = quantile(jnp.abs(v) if symmetric else v, clip, axes, keepdims=True)
            return -high if symmetric else quantile(v, 1 - clip, axes, keepdims=True), high
        if self.range_rule == "std":
            unit = power_of_two(jnp.max(jnp.abs(v), axes, keepdims=True))
            mean = unit * jnp.mean(v / unit, axes, keepdims=True)
            half = unit * (clip * root(jnp.var(v / unit, axes, keepdims=True)))
            middle = jnp.zeros_like(mean) if symmetric else mean
            return middle - half, middle + half
        if symmetric:
            high = jnp.max(jnp.abs(v), axes, keepdims=True)
            low = -high
        else:
            low, high = jnp.min(v, axes, keepdims=True), jnp.max(v, axes, keepdims=True)
        ratio = clip if self.range_rule == "max" else self._best_ratio(v, axes, low, high)
        return _shrink(low, high, ratio)

    def _best_ratio(self, v: Array, axes: tuple[int, ...], low: Array, high: Array) -> Array:
        """The clip ratio with the least squared error for each scale, from a geometric grid.

        Smaller ratios clip more: the search ends where the clipping error exceeds the least error
        so far, for all scales.
        """
        v, low, high = jax.lax.stop_gradient((v, low, high))
        ratios = jnp.geomspace(1, LOWEST_RATIO, self.steps, dtype=v.dtype)

        def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
            step, least, _, cut = state
            return (step < self.steps) & jnp.any(cut * CAREFUL < least)

        def keep_better(state: tuple[Array, Array, Array, Array]) -> Any:
            step, least, best, _ = state
            ratio = ratios[step]
            bottom, top = _shrink(low, high, ratio)
            scale, offset = self._grid(bottom, top)
            v_hat = self._place(self._round(v, scale, offset), scale, offset)
            error = jnp.sum(jnp.square(v_hat - v), axes, keepdims=True)
            beyond = v - jnp.clip(v, bottom - scale / 2, top + scale / 2)  # no level lies further
            cut = jnp.sum(jnp.square(beyond), axes, keepdims=True)
            better = error < least
            return step + 1, jnp.where(better, error, least), jnp.where(better, ratio, best), cut

        start = jnp.full_like(high, jnp.inf), jnp.ones_like(high), jnp.zeros_like(high)
        return jax.lax.while_loop(unfinished, keep_better, (jnp.int32(0), *start))[2]

    def _grid(self, low: Array, high: Array) -> tuple[Array, Array | None]:
        """Scale and offset of the levels between `low` and `high`."""
        if self.grid in SYMMETRIC:
            return high / (2 ** (self.bits - 1) - 1 + SYMMETRIC.index(self.grid) / 2), None
        if self.grid == "zero_point":
            low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        scale = (high / 2 - low / 2) / ((2**self.bits - 1) / 2)  # their difference may overflow
        return scale, low if self.grid == "affine" else -_zero_point(scale, low) * scale

    def _round(self, v: Array, scale: Any, offset: Any) -> Array:
        """The nearest code, still a float."""
        if self.grid in SYMMETRIC:
            top = 2 ** (self.bits - 1) - 1
            bottom = -top - (self.grid != "restricted")
            return jnp.clip(jnp.round(divide(v, scale)), bottom, top)
        return jnp.clip(jnp.round(divide(v - offset, scale)), 0, 2**self.bits - 1)

    def _place(self, values: Array, scale: Any, offset: Any) -> Array:
        """The levels of codes."""
        values = values.astype(scale.dtype)
        if self.grid == "affine":
            return (values * (scale / 2) + offset / 2) * 2
        if self.grid == "zero_point":
            return (values - _zero_point(scale, offset)) * scale
        return values * scale


def absmax(
    bits: int,
    granularity: str = "tensor",
    group: int = 0,
    *,
    levels: str = "restricted",
    range_rule: str = "max",
    clip: float | Float[Array, ""] | None = None,
    steps: int = 100,
) -> Uniform:
    """A symmetric uniform quantizer: `clamp(round(v / s)) * s`; zero is always a level.

    With q = 2^(bits-1) - 1 and a the end of the range (max|v| by default), `levels` are

    | levels | s | codes |
    |---|---|---|
    | `restricted` | a / q | -q ... q |
    | `balanced` | a / (q + 1/2) = 2a / (2^bits - 1) | -q-1 ... q |
    | `full` | a / (q + 1) | -q-1 ... q |

    and the range is found by `range_rule`:

    | range_rule | a |
    |---|---|
    | `max` | clip * max abs(v) |
    | `percentile` | the `clip`-quantile of abs(v); no gradient passes through it |
    | `std` | clip * standard deviation of v |
    | `mse` | r * max abs(v), the r in [0.01, 1] with the least squared error; `clip` is unused |

    Args:
        bits: 2 to 8.
        granularity: which elements share a scale, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0; it must divide the last axis.
        levels: `restricted`, `balanced` or `full`.
        range_rule: `max`, `percentile`, `std` or `mse`.
        clip: traced parameter of the range rule: above 0, and at most 1 for `max` (default 1.0) and
            `percentile` (default 0.999); any value for `std` (default 4.0).
        steps: ratios tried by `mse`, in geometric progression.

    Raises:
        ValueError: an argument is none of the allowed values, or `clip` is a Python number out of
            its range.
    """
    check_choice("levels", levels, SYMMETRIC)
    return _uniform(bits, granularity, group, levels, range_rule, clip, steps)


def minmax(
    bits: int,
    granularity: str = "tensor",
    group: int = 0,
    *,
    levels: str = "zero_point",
    range_rule: str = "max",
    clip: float | Float[Array, ""] | None = None,
    steps: int = 100,
) -> Uniform:
    """An asymmetric uniform quantizer: 2^bits levels from the minimum to the maximum.

    Codes are 0 ... 2^bits - 1, and s = (high - low) / (2^bits - 1). `levels` are

    | levels | v_hat | zero |
    |---|---|---|
    | `zero_point` | s * (code - z), z = round(-low / s) | a level; the range includes it |
    | `affine` | s * code + low | need not be a level (KIVI, Liu et al. 2024) |

    The range [low, high] is found as in `absmax`: `max` keeps `clip` of [min v, max v] about its
    middle, `percentile` takes the quantiles 1 - clip and clip of v, `std` the mean plus and minus
    `clip` standard deviations, and `mse` searches the ratio.

    Args:
        bits: 2 to 8.
        granularity: which elements share a range, see `isojax.quantizers.granularity`.
        group: group length for granularity `group`, else 0; it must divide the last axis.
        levels: `zero_point` or `affine`.
        range_rule: `max`, `percentile`, `std` or `mse`.
        clip: traced parameter of the range rule, see `absmax`; a percentile must be above 0.5.
        steps: ratios tried by `mse`, in geometric progression.

    Raises:
        ValueError: an argument is none of the allowed values, or `clip` is a Python number out of
            its range.
    """
    check_choice("levels", levels, ASYMMETRIC)
    return _uniform(bits, granularity, group, levels, range_rule, clip, steps)


def _uniform(
    bits: int, granularity: str, group: int, grid: str, range_rule: str, clip: Any, steps: int
) -> Uniform:
    bits = check_choice("bits", bits, range(2, 9))
    check_granularity(granularity, group)
    check_choice("range_rule", range_rule, DEFAULT_CLIP)
    check_positive("steps", steps)
    clip = DEFAULT_CLIP[range_rule] if clip is None else clip
    if isinstance(clip, int | float):
        _check_clip(clip, range_rule, grid)
    return Uniform(jnp.asarray(clip, float), bits, granularity, group, grid, range_rule, steps)


def _check_clip(clip: float, range_rule: str, grid: str) -> None:
    low = 0.5 if range_rule == "percentile" and grid in ASYMMETRIC else 0
    high = 1 if range_rule in ("max", "percentile") else math.inf
    if range_rule != "mse" and not low < clip <= high:
        most = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"clip must be above {low}{most} for {range_rule!r}, got {clip!r}.")


def _shrink(low: Array, high: Array, ratio: Array) -> tuple[Array, Array]:
    margin = (1 - ratio) * (high / 2 - low / 2)
    return low + margin, high - margin


def _zero_point(scale: Any, offset: Any) -> Array:
    """The code of zero."""
    return jnp.round(divide(-offset, scale))
