"""Permutations that distribute channels over the blocks of a block rotation.

Each takes calibration activations and returns a `Permutation`: after `perm.apply(x)`, block j is
the j-th run of `block` neighbours. They run under `jit`, and under `vmap` over layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from isojax._core.checks import check_divides, check_positive, compute_dtype
from isojax.transforms.permutation import Permutation


def mass_diff(x: Float[Array, "tokens d"], block: int) -> Permutation:
    """Greedy mass diffusion: blocks of nearly equal l1 mass in the calibration mean.

    Channels in descending order of mean |x|; the first n seed the n blocks; each further one goes
    to the block with the least sum of means among those with fewer than `block` channels.
    Ties go to the lowest index (Sanjeet et al. 2026, MixQuant, arXiv 2601.22347, Algorithm 1).

    Args:
        x: calibration activations of at least one token, finite. bf16 and fp16 are computed in
            fp32, without a copy of `x`.
        block: channels of a block, a divisor of d.

    Raises:
        ValueError: `block` does not divide d; `x` is empty, not floating, or, where it is not
            traced, not finite.
    """
    mass = _scores(x, jnp.mean)
    n = len(mass) // check_divides("block", block, "d", len(mass))
    order = _descending(mass)
    seeded = mass[order[:n]], jnp.full(n, block - 1)
    _, later = jax.lax.scan(_give, seeded, mass[order[n:]])
    return Permutation(order[jnp.argsort(jnp.concatenate([jnp.arange(n), later]), stable=True)])


def _give(state: tuple[Array, Array], new: Array) -> tuple[tuple[Array, Array], Array]:
    """Add a channel's mass to the least load among the blocks with room."""
    load, room = state
    to = jnp.argmin(jnp.where(room > 0, load, jnp.inf))
    return (load.at[to].add(new), room.at[to].add(-1)), to


def zigzag(x: Float[Array, "tokens d"], block: int) -> Permutation:
    """Channels in descending order of max |x|, dealt to blocks 1 ... n, n ... 1, and so on.

    Args:
        x: calibration activations, as for `mass_diff`.
        block: channels of a block, a divisor of d.

    Raises:
        ValueError: as `mass_diff`.
    """
    order = _descending(_scores(x, jnp.max))
    rounds = order.reshape(check_divides("block", block, "d", len(order)), -1)
    return Permutation(rounds.at[1::2].set(rounds[1::2, ::-1]).T.ravel())


def absmax_order(x: Float[Array, "tokens d"]) -> Permutation:
    """Channels in descending order of max |x|: the worst case, all outliers in the first blocks.

    Args:
        x: calibration activations, as for `mass_diff`.

    Raises:
        ValueError: as `mass_diff`.
    """
    return Permutation(_descending(_scores(x, jnp.max)))


def co_activation(x: Float[Array, "tokens d"], block: int, *, passes: int = 4) -> Permutation:
    """Blocks of nearly equal mass per token: channels that fire together go to different blocks.

    Minimises the mean over tokens of sum_j p_tj^2, p_tj the share of block j in the l1 mass of
    token t; it is 1/n where all blocks are equal in every token. It equals the sum, over pairs of
    channels in one block, of C = mean_t |x_t| |x_t|^T / ||x_t||_1^2, so C is enough. From
    `mass_diff`, each channel is swapped with the one that lowers it most.

    O(tokens d^2) time for C and O(d^2) per pass; memory for C and two copies of `x`.

    Args:
        x: calibration activations, as for `mass_diff`; use several times d tokens.
        block: channels of a block, a divisor of d.
        passes: over the channels; none increases the sum.

    Raises:
        ValueError: as `mass_diff`, or `passes` is not a whole number of at least 1.
    """
    steps = check_positive("passes", passes) * x.shape[-1]
    blocks = mass_diff(x, block).T.indices // block
    c = _co_activation(x)
    load = jax.ops.segment_sum(c, blocks, len(c) // block)

    def improve(step: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        return _swap(c, step % len(c), *state)

    blocks = jax.lax.fori_loop(0, steps, improve, (load, blocks))[1]
    return Permutation(jnp.argsort(blocks, stable=True))


def _swap(
    c: Float[Array, "d d"], i: Any, load: Float[Array, "n d"], blocks: Int[Array, "d"]
) -> tuple[Float[Array, "n d"], Int[Array, "d"]]:
    """Swap channel `i` with the best other one, if that lowers the sum.

    `load` is the sum of `c` over the channels of each block. Swaps within a block gain nothing,
    since `c` is positive semidefinite.
    """
    own = load[blocks, jnp.arange(len(c))] - jnp.diagonal(c)
    gain = own[i] + own - load[blocks, i] - load[blocks[i]] + 2 * c[i]
    k = jnp.argmax(gain)
    here, there = blocks[i], blocks[k]
    better = gain[k] > 0
    change = jnp.where(better, c[k] - c[i], 0)
    load = load.at[here].add(change).at[there].add(-change)
    pair = jnp.where(better, jnp.stack([there, here]), jnp.stack([here, there]))
    return load, blocks.at[jnp.stack([i, k])].set(pair)


def _co_activation(x: Float[Array, "tokens d"]) -> Float[Array, "d d"]:
    size = jnp.abs(x.astype(compute_dtype(x.dtype)))
    total = jnp.sum(size, -1, keepdims=True)
    share = size / jnp.where(total == 0, 1, total)
    return jnp.matmul(share.T, share, precision="highest") / len(x)


def _scores(x: Float[Array, "tokens d"], statistic: Callable[..., Array]) -> Float[Array, "d"]:
    """The mean or the maximum of |x| over the tokens, with checks."""
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must be [tokens, d], with at least one token, got shape {x.shape}.")
    scores = _statistic(x, statistic)
    if not isinstance(scores, Tracer) and not jnp.all(jnp.isfinite(scores)):
        lost = int(jnp.sum(~jnp.isfinite(scores)))
        raise ValueError(f"x must be finite, got NaN or infinity in {lost} of its channels.")
    return scores


@functools.partial(jax.jit, static_argnames="statistic")
def _statistic(x: Float[Array, "tokens d"], statistic: Callable[..., Array]) -> Float[Array, "d"]:
    """The statistic of |x|, compiled so that |x| is not stored."""
    return statistic(jnp.abs(x.astype(compute_dtype(x.dtype))), 0)


def _descending(scores: Float[Array, "d"]) -> Int[Array, "d"]:
    return jnp.argsort(-scores, stable=True)
