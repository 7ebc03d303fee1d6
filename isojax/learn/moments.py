"""Second moments of calibration vectors, for GPTQ and aligned axes."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_not_empty, compute_dtype
from isojax._core.pytree import pytree


@pytree
class Gram:
    """Sums over calibration vectors, which add up over batches; made by `gram`.

    Attributes:
        total: sum of x x^T.
        count: number of vectors.
    """

    total: Float[Array, "*batch d d"]
    count: Float[Array, "*batch"]

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.total + other.total, self.count + other.count)

    @property
    def moment(self) -> Float[Array, "*batch d d"]:
        """mean(x^T x) of row vectors, not centred."""
        return self.total / self.count[..., None, None]

    @property
    def hessian(self) -> Float[Array, "*batch d d"]:
        """H = 2 mean(x x^T), the Hessian of the squared error of each output of a linear layer."""
        return 2 * self.moment


def gram(x: Float[Array, "*tokens d"]) -> Gram:
    """The sums of `x` over all its vectors; over layers by `vmap`.

    In fp32, fp64 for fp64. For GPTQ fp32 suffices: its rounding lies far below the damping.

    Example:
        >>> total = gram(x[0]) + gram(x[1])
        >>> codes = gptq(w, total.hessian, quantizer)

    Raises:
        ValueError: `x` is empty or its dtype is not floating.
    """
    check_not_empty("x", x)
    x = x.astype(compute_dtype(x.dtype)).reshape(-1, x.shape[-1])
    return Gram(jnp.matmul(x.T, x, precision="highest"), jnp.asarray(len(x), x.dtype))


def second_moment(x: Float[Array, "*batch d"]) -> Float[Array, "d d"]:
    """mean(x^T x) over all vectors, in fp32 (fp64 for fp64); not centred."""
    return gram(x).moment
