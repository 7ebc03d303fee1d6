"""Axes that need not be orthogonal: an invertible matrix, for errors measured in another metric."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.pytree import pytree
from isojax.transforms.base import Transform


@pytree
class Oblique(Transform):
    """`x @ entries` for any invertible matrix, stored with its inverse; no isometry.

    With `entries = S^(1/2) U`, the squared error of `y` is that of `x` in the metric S:
    |y - y_hat|^2 = (x - x_hat) S (x - x_hat)^T. Made by `isojax.learn.aligned`.

    Attributes:
        entries: [d, d].
        inverse_entries: the inverse of `entries`; not checked.
    """

    entries: Float[Array, "... d d"]
    inverse_entries: Float[Array, "... d d"]

    @property
    def dim(self) -> int:  # noqa: D102
        return self.entries.shape[-1]

    @property
    def T(self) -> Oblique:  # noqa: D102
        return Oblique(self.entries.swapaxes(-1, -2), self.inverse_entries.swapaxes(-1, -2))

    @property
    def isometry(self) -> bool:  # noqa: D102
        return False

    @property
    def inverse(self) -> Oblique:  # noqa: D102
        return Oblique(self.inverse_entries, self.entries)

    @property
    def params(self) -> int:  # noqa: D102
        return self.dim**2

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.dim**2

    def forward(self, x: Array) -> Array:  # noqa: D102
        return jnp.matmul(x, self.entries.astype(x.dtype), precision="highest")
