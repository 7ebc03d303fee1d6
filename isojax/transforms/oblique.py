"""Axes that need not be orthogonal: an invertible matrix, for errors measured in another metric."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.pytree import pytree
from isojax.transforms.base import Transform


@pytree
class Oblique(Transform):
    """`x @ entries` for any invertible matrix; the one member that does not keep norms.

    With `entries = S^(1/2) U` a plain squared error of `y` is one of `x` in the metric S:
    |y - y_hat|^2 = (x - x_hat) S (x - x_hat)^T. `T` is the inverse; `dual` turns what meets `x` in
    an inner product. Made by `isojax.learn.aligned`.

    Attributes:
        entries: [d, d].
        inverse: of `entries`, not checked.
    """

    entries: Float[Array, "... d d"]
    inverse: Float[Array, "... d d"]

    @property
    def dim(self) -> int:  # noqa: D102
        return self.entries.shape[-1]

    @property
    def T(self) -> Oblique:
        """The inverse, in the same family; not the adjoint."""
        return Oblique(self.inverse, self.entries)

    @property
    def dual(self) -> Oblique:  # noqa: D102
        return Oblique(self.inverse.swapaxes(-1, -2), self.entries.swapaxes(-1, -2))

    @property
    def params(self) -> int:  # noqa: D102
        return self.dim**2

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.dim**2

    def _apply(self, x: Array) -> Array:
        return jnp.matmul(x, self.entries.astype(x.dtype), precision="highest")
