"""Dense orthogonal matrices: random ones, and the axes of a set of samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_positive
from isojax._core.finite import finite
from isojax._core.pytree import pytree
from isojax.transforms.base import Transform
from isojax.transforms.drawn import drawn


@pytree
class Dense(Transform):
    """`x @ entries` for an orthogonal matrix that is stored whole.

    Matrices drawn or fitted by isojax are in fp32, and orthogonal to its rounding: fp64 vectors are
    multiplied in fp64, and their round trip is exact to about 1e-7.

    Attributes:
        entries: orthogonal matrix, [d, d]; not checked.
    """

    entries: Float[Array, "... d d"]

    @property
    def dim(self) -> int:  # noqa: D102
        return self.entries.shape[-1]

    @property
    def T(self) -> Dense:  # noqa: D102
        return Dense(self.entries.swapaxes(-1, -2))

    @property
    def params(self) -> int:  # noqa: D102
        return self.dim**2

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.dim**2

    def forward(self, x: Array) -> Array:  # noqa: D102
        return jnp.matmul(x, self.entries.astype(x.dtype), precision="highest")

    def matrix(self) -> Float[Array, "d e"]:  # noqa: D102
        return self.entries.astype(jnp.float32)


@drawn("haar")
def haar(key: Key[Array, ""], dim: int) -> Dense:
    """A uniformly random orthogonal matrix (Haar measure on O(d)), in fp32.

    Raises:
        ValueError: `dim` is not a whole number of at least 1.
    """
    return Dense(jax.random.orthogonal(key, check_positive("dim", dim), dtype=jnp.float32))


def pca(samples: Float[Array, "n d"]) -> Dense:
    """The uncentred Karhunen-Loeve transform of `samples`, fitted in fp32.

    Columns are the eigenvectors of the second moment `samples^T samples / n`, by descending
    energy, each with its largest entry positive. Fit and test on different tokens: with n near d
    the error on the fitted samples does not estimate that on others. NaN where the second moment
    is traced and not finite.

    Raises:
        ValueError: `samples` is not a matrix with at least one row, or its second moment is not
            finite: it holds NaN, or elements whose squares overflow fp32.
    """
    if samples.ndim != 2 or samples.shape[0] < 1:
        raise ValueError(f"samples must have shape [n, d] with n at least 1, got {samples.shape}.")
    x = samples.astype(jnp.float32)
    moment = jnp.matmul(x.T, x, precision="highest") / len(x)
    _, axes = jnp.linalg.eigh(finite("the second moment of samples", moment))
    axes = axes[:, ::-1]
    peak = jnp.take_along_axis(axes, jnp.abs(axes).argmax(0, keepdims=True), axis=0)
    return Dense(axes * jnp.where(peak < 0, -1.0, 1.0))
