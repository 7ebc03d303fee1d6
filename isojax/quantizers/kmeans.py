"""k-means in one dimension: exact means of cells, from starts that avoid poor minima.

In sorted numbers a cell is a run, whose mean follows from two prefix sums. So an iteration of
Lloyd's algorithm takes one bisection per border, and no pass over the numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isojax._core.quantile import ordered, unordered

FEWEST_BINS = 256
BISECTIONS = 40
LARGEST, LEAST = 2.0**64, 2.0**-120


def k_means(
    x: Float[Array, " n"], number: int, steps: int, active: Int[Array, ""] | int | None = None
) -> Float[Array, " k"]:
    """The `number` levels of least squared error for the numbers `x`, in increasing order.

    The better of two starts, after `steps` of Lloyd's algorithm each, or fewer where the levels
    stand still. One merges the neighbours that cost least (Ward 1963; for levels, Equitz 1989, "A
    new vector quantization clustering algorithm"), which finds the levels that far outliers and
    separate modes need; the other has levels at equal shares of the cube root of the density. Where
    `x` has at least `number` distinct values, no cell is empty. Traced: works under `jit`, and
    under `vmap` over `x`.

    Args:
        x: at least one number, all finite, in fp32.
        number: of levels.
        steps: of Lloyd's algorithm.
        active: how many levels to fit, up to `number`; the others are +inf.
    """
    # up to 2^64, so that neither sums nor distances leave the range of fp32
    unit = jnp.maximum(jnp.max(jnp.abs(x)) / LARGEST, LEAST)
    v = unordered(jnp.sort(ordered(x / unit)), x.dtype)  # of integers, in a quarter of the time
    centre = v[v.size // 2]
    v = v - centre
    total = _sums(v)
    per_level = 4 if active is None else 2  # most of several fits have far fewer than `number`
    fine = max(number, min(max(FEWEST_BINS, per_level * number), v.size))
    bins = _cells(v, total, _bins(v, fine))
    left = number if active is None else active
    place = jnp.arange(number)
    share = (place.astype(v.dtype) + 0.5) / jnp.asarray(left, v.dtype)
    even = bins[1][(share * len(bins[1])).astype(jnp.int32)]
    starts = [_merge(*bins, left)[:number], jnp.sort(jnp.where(place < left, even, jnp.inf))]

    def moves(state: tuple[Array, Array, Array]) -> Array:
        step, before, level = state
        return (step < steps) & jnp.any(level != before)

    def move_to_means(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, _, level = state
        inner = jnp.searchsorted(v, (level[1:] + level[:-1]) / 2, side="right")
        count, mean = _cells(v, total, _with_ends(inner, v.size))
        return step + 1, level, jnp.where(count > 0, mean, level)

    def fit(start: Array) -> tuple[Array, Array]:
        before = jnp.full_like(start, -jnp.inf)  # no level
        level = jax.lax.while_loop(moves, move_to_means, (jnp.asarray(0), before, start))[2]
        nearest = level[jnp.searchsorted((level[1:] + level[:-1]) / 2, v, side="right")]
        return level, jnp.sum(jnp.square((v - nearest) / 2.0**10))

    levels, errors = jax.vmap(fit)(jnp.stack(starts))
    return (levels[jnp.argmin(errors)] + centre) * unit


def _sums(v: Array) -> Array:
    """Sums of the sorted numbers below each place, from the middle outwards for precision."""
    middle = v.size // 2
    low = -jnp.cumsum(v[:middle][::-1])[::-1]
    return jnp.concatenate([low, jnp.zeros(1, v.dtype), jnp.cumsum(v[middle:])])


def _with_ends(inner: Array, size: int) -> Array:
    return jnp.concatenate([jnp.zeros(1, inner.dtype), inner, jnp.full(1, size, inner.dtype)])


def _cells(v: Array, total: Array, at: Array) -> tuple[Array, Array]:
    """The number of sorted `v` between neighbouring places `at`, and their mean."""
    count = jnp.diff(at).astype(v.dtype)
    mean = jnp.diff(total[at]) / jnp.maximum(count, 1)
    low, high = v[jnp.minimum(at[:-1], v.size - 1)], v[jnp.clip(at[1:] - 1, 0, v.size - 1)]
    return count, jnp.clip(mean, low, jnp.maximum(low, high))


def _bins(v: Array, number: int) -> Array:
    """Places of the borders of `number` bins, at equal shares of the cube root of the density.

    Between neighbours at a distance g it is g^(2/3) (Panter and Dite 1951), but one bin at most;
    where there are fewer distances than bins, each has its own.
    """
    weight = jnp.square(jnp.cbrt(jnp.diff(v)))
    high = jnp.log(jnp.max(weight, initial=jnp.finfo(v.dtype).tiny))

    def capped(log_share: Array) -> Array:
        return jnp.minimum(weight * jnp.exp(-log_share), 1)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        few = jnp.sum(capped(middle)) <= number - 1
        return jnp.where(few, low, middle), jnp.where(few, middle, high)

    ends = jnp.full_like(high, jnp.log(jnp.finfo(v.dtype).tiny)), high
    share = jnp.cumsum(capped(jax.lax.fori_loop(0, BISECTIONS, halve, ends)[1]))
    wanted = jnp.arange(1, number, dtype=v.dtype) - 0.5
    return _with_ends(jnp.searchsorted(share, wanted) + 1, v.size)


def _merge(count: Array, mean: Array, left: Array | int) -> Array:
    """Means of `left` runs of neighbouring bins, then +inf: merged where that costs least."""
    size = len(count)
    after, before = jnp.arange(1, size + 1), jnp.arange(-1, size - 1)

    def cost(a: Array, b: Array, m: Array, n: Array) -> Array:
        """The root of the increase in squared error, which cannot overflow."""
        return jnp.sqrt(m * n / jnp.maximum(m + n, 1)) * (b - a)

    def step(i: Any, state: Any) -> Any:
        count, mean, after, before, costs = state
        # beyond the last merge nothing is written: cheaper under vmap than a loop that ends
        here = jnp.where(i < size - left, jnp.argmin(costs), size)
        other = after[here]
        low, high = before[here], after[other]
        both = count[here] + count[other]
        share = count[other] / jnp.maximum(both, 1)
        joined = mean[here] + (mean[other] - mean[here]) * share
        # an index beyond the end reads an unused value, and writes nothing
        count = count.at[here].set(both, mode="drop")
        mean = mean.at[jnp.stack([here, other])].set(jnp.stack([joined, jnp.inf]), mode="drop")
        after = after.at[here].set(high, mode="drop")
        before = before.at[high].set(here, mode="drop")
        down = jnp.where(low < 0, jnp.inf, cost(mean[low], joined, count[low], both))
        up = cost(joined, mean[high], both, count[high])
        up = jnp.where(high < size, up, jnp.inf)
        low = jnp.where((low < 0) | (here == size), size, low)
        costs = costs.at[jnp.stack([other, here, low])].set(
            jnp.stack([jnp.full_like(up, jnp.inf), up, down]), mode="drop"
        )
        return count, mean, after, before, costs

    costs = jnp.append(cost(mean[:-1], mean[1:], count[:-1], count[1:]), jnp.inf)
    state = count, mean, after, before, costs
    most = size - (left if isinstance(left, int) else 1)
    return jnp.sort(jax.lax.fori_loop(0, most, step, state)[1])
