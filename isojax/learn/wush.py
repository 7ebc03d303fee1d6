"""Closed forms that align inputs with the weights that read them: WUSH and CAT.

For y = x W in coordinates T, that is x T and T^-1 W, let C be the second moment of x and S = W W^T.
Where rotations have flattened both, the error at a number of bits is proportional to
|x T|^2 |T^-1 W|^2 = tr(T^T C T) tr(T^-1 S T^-T), which no rotation changes. It depends only on
T T^T, and is least where this is the geometric mean of C^-1 and S,

    T T^T = C^(-1/2) (C^(1/2) S C^(1/2))^(1/2) C^(-1/2),

where |x T|_F |T^-1 W|_F is the nuclear norm of X W. The best block-diagonal T has this form in each
block, and the best diagonal is `isojax.learn.balance_scale`. A rotation after T remains free; the
one that flattens is a separate stage, as in `wush:32@block_hadamard:32`.

- WUSH (Chen et al. 2026, arXiv 2512.00956): T = C^(-1/2) U D^(1/2), where C^(1/2) S C^(1/2) =
  U D^2 U^T. Then x T and T^-1 W both have the diagonal second moment D, which any Hadamard
  matrix spreads evenly.
- CAT (Federici et al. 2026, arXiv 2603.04359): the symmetric root of T T^T, the solution
  nearest to the identity. The paper has it in blocks.

Roots are computed by `eigh`, and D by an SVD of C^(1/2) S^(1/2), not from the eigenvalues of
C^(1/2) S C^(1/2), whose condition number is the square. In fp32, at a damping of 1%,
|x T| |T^-1 W| is then within 1e-5 of its minimum (d up to 1536), and T^-1 T within 1e-4 of the
identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from isojax._core.checks import check_divides, compute_dtype
from isojax.transforms import BlockDiagonal, Oblique, Transform


class Pair(NamedTuple):
    """A matrix and its inverse.

    Attributes:
        there: T.
        back: T^-1.
    """

    there: Float[Array, "d d"]
    back: Float[Array, "d d"]


def wush(
    moment: Float[Array, "d d"],
    metric: Float[Array, "d d"],
    *,
    block: int = 0,
    damping: float | Float[Array, ""] = 0.01,
) -> Transform:
    """WUSH without its Hadamard matrix: x T and T^-1 W get one diagonal second moment, descending.

    Defined for all finite moments, singular ones too: eigenvalues are at least the largest times
    the machine precision, and a moment of zeros counts as the identity. With fewer vectors than
    dimensions, unseen directions have only the damping.

    Args:
        moment: C, of the inputs, see `second_moment`.
        metric: S = W W^T, over all weights that read them.
        block: length of blocks, each aligned separately; 0 for the full width.
        damping: share of the mean eigenvalue that is added to all eigenvalues, of C and of S.

    Raises:
        ValueError: the moments are not square or differ in shape; one is not finite (not checked
            where traced); `block` does not divide d; or `damping` is a negative Python number.
    """
    return _in_blocks(spectral, moment, metric, block, damping)


def cat(
    moment: Float[Array, "d d"],
    metric: Float[Array, "d d"],
    *,
    block: int = 0,
    damping: float | Float[Array, ""] = 0.01,
) -> Transform:
    """CAT without its Hadamard matrix: the symmetric root of the T T^T of `wush`.

    Arguments and errors are those of `wush`. Derived here from the paper's objective, block by
    block; the damping of its code is not known to us.
    """
    return _in_blocks(_symmetric, moment, metric, block, damping)


def damped(
    name: str, moment: Float[Array, "d d"], damping: float | Float[Array, ""]
) -> Float[Array, "d d"]:
    """A moment plus `damping` times its mean eigenvalue; the identity for zeros.

    Raises:
        ValueError: it is not square or not finite (not checked where it is traced), or `damping` is
            a negative Python number.
    """
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        raise ValueError(f"{name} must be a square matrix, got shape {moment.shape}.")
    if isinstance(damping, int | float) and not damping >= 0:
        raise ValueError(f"damping must be at least 0, got {damping!r}.")
    moment = moment.astype(compute_dtype(moment.dtype, name))
    if not isinstance(moment, Tracer) and not jnp.all(jnp.isfinite(moment)):
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    eye, mean = jnp.eye(len(moment), dtype=moment.dtype), jnp.trace(moment) / len(moment)
    return jnp.where(mean > 0, moment + damping * mean * eye, eye)


def spectral(moment: Float[Array, "d d"], metric: Float[Array, "d d"]) -> Pair:
    """T of `wush` for damped moments: T^T C T = T^-1 S T^-T = D, in descending order."""
    size, axes = _eigen(moment)
    root, back = product(axes * size[None], axes.T), product(axes / size[None], axes.T)
    other, ways = _eigen(metric)
    left, spectrum, _ = jnp.linalg.svd(product(root, ways * other[None]))
    floor = jnp.finfo(spectrum.dtype).eps * len(spectrum) * spectrum[0]
    half = jnp.sqrt(jnp.maximum(spectrum, floor))
    return Pair(product(back, left) * half[None], product(left.T, root) / half[:, None])


def product(a: Float[Array, "... i j"], b: Float[Array, "... j k"]) -> Float[Array, "... i k"]:
    """Matrix product in full precision on all devices."""
    return jnp.matmul(a, b, precision="highest")


def _symmetric(moment: Array, metric: Array) -> Pair:
    left, size, _ = jnp.linalg.svd(spectral(moment, metric).there)
    return Pair(product(left * size[None], left.T), product(left / size[None], left.T))


def _eigen(moment: Array) -> tuple[Array, Array]:
    """Roots of the eigenvalues, none of them zero, and the axes."""
    size, axes = jnp.linalg.eigh(moment)
    return jnp.sqrt(jnp.maximum(size, jnp.finfo(size.dtype).eps * len(size) * size[-1])), axes


def _in_blocks(
    fit: Callable[[Array, Array], Pair], moment: Array, metric: Array, block: int, damping: Any
) -> Transform:
    if metric.shape != moment.shape:
        raise ValueError(f"metric must have shape {moment.shape}, got {metric.shape}.")
    both = damped("moment", moment, damping), damped("metric", metric, damping)
    if not block:
        return Oblique(*fit(*both))
    count = len(moment) // check_divides("block", block, "d", len(moment))
    blocks = (_diagonal_blocks(each, count) for each in both)
    return BlockDiagonal(Oblique(*jax.vmap(fit)(*blocks)), count)


def _diagonal_blocks(matrix: Array, count: int) -> Float[Array, "n b b"]:
    size = len(matrix) // count
    return jnp.einsum("ibic->ibc", matrix.reshape(count, size, count, size))
