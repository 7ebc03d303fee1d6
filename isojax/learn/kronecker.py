"""The best Kronecker factors: alignment of inputs with weights at 2 d^1.5 multiply-adds.

The objective of `isojax.learn.wush`, |x T| |T^-1 W|, over T = kron(P1, P2), the form that FlatQuant
learns (Sun et al. 2025, arXiv 2410.09426). With T T^T = kron(G1, G2) and G2 fixed, it is the same
problem in G1, with the moments C1 = sum_ab G2[a, b] C[(., a), (., b)] and M1, likewise from M and
G2^-1, and has the same closed form; the same holds with G1 fixed. The logarithm of the objective is
convex along geodesics of positive matrices, and Kronecker products form a geodesically closed set.
So alternating between the factors converges to the global minimum.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.axes import largest_divisor
from isojax._core.checks import check_divides, check_positive
from isojax.learn.wush import Pair, damped, product, spectral
from isojax.transforms import Kronecker, Oblique


def kron_wush(
    moment: Float[Array, "d d"],
    metric: Float[Array, "d d"],
    *,
    left: int = 0,
    damping: float | Float[Array, ""] = 0.01,
    steps: int = 10,
) -> Kronecker:
    """The Kronecker product T = kron(P1, P2) with the least |x T| |T^-1 W|.

    Starts from the identity; each step solves for P1, then for P2. Each factor diagonalises both
    second moments to the same diagonal, as in `wush`. Computed in fp32, where ten steps suffice: on
    correlated inputs of 576 channels the objective is then within 1e-6 of its limit.

    Args:
        moment: C, of the inputs, see `second_moment`.
        metric: M = W W^T, over all weights that read them.
        left: order of P1, a divisor of d; 0 for the largest up to sqrt(d).
        damping: share of the mean eigenvalue that is added to all eigenvalues, of C and of M.
        steps: of alternation.

    Raises:
        ValueError: as `wush`; `left` does not divide d, or `steps` is not a whole number of at
            least 1.
    """
    if metric.shape != moment.shape:
        raise ValueError(f"metric must have shape {moment.shape}, got {metric.shape}.")
    both = damped("moment", moment, damping), damped("metric", metric, damping)
    dim = len(moment)
    first = check_divides("left", left, "d", dim) if left else near_square(dim)[0]
    second = dim // first
    c, m = (each.reshape(first, second, first, second) for each in both)

    def solve(sum_: str, other: Pair) -> Pair:
        """One factor for a fixed other one."""
        outer = product(other.there, other.there.T), product(other.back.T, other.back)
        given = (
            jnp.einsum(sum_, a, g, precision="highest") for a, g in zip((c, m), outer, strict=True)
        )
        return spectral(*given)

    def step(_: Any, pairs: tuple[Pair, Pair]) -> tuple[Pair, Pair]:
        one = solve("iajb,ab->ij", pairs[1])
        return one, solve("iajb,ij->ab", one)

    eyes = (jnp.eye(n, dtype=c.dtype) for n in (first, second))
    start = tuple(Pair(eye, eye) for eye in eyes)
    pairs = jax.lax.fori_loop(0, check_positive("steps", steps), step, start)
    return Kronecker(*(Oblique(*pair) for pair in pairs))


def near_square(dim: int) -> tuple[int, int]:
    """The two factors of `dim` nearest to its square root, the smaller one first."""
    first = largest_divisor(dim, math.isqrt(dim))
    return first, dim // first
