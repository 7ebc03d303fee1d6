"""Kronecker products: one transform across blocks, one within each."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.pytree import pytree
from isojax.transforms.base import Transform
from isojax.transforms.oblique import Oblique


@pytree
class Kronecker(Transform):
    """`x @ kron(left, right)`: `right` on blocks of neighbours, `left` across the blocks.

    With x as a matrix of blocks, [left.dim, right.dim], that is left^T x right. It equals
    `repeat(right, n1) @ strided(repeat(left, n2), n1, n2)` for square transforms of lengths n1 and
    n2, at the same cost: n1 n2 (n1 + n2) multiply-adds for two dense ones.

    Attributes:
        left: acts on the index of a block.
        right: acts within each block.
    """

    left: Transform
    right: Transform

    @property
    def dim(self) -> int:  # noqa: D102
        return self.left.dim * self.right.dim

    @property
    def out_dim(self) -> int:  # noqa: D102
        return self.left.out_dim * self.right.out_dim

    @property
    def T(self) -> Kronecker:  # noqa: D102
        return Kronecker(self.left.T, self.right.T)

    @property
    def isometry(self) -> bool:  # noqa: D102
        return self.left.isometry and self.right.isometry

    @property
    def inverse(self) -> Kronecker:  # noqa: D102
        return Kronecker(self.left.inverse, self.right.inverse)

    @property
    def params(self) -> int:  # noqa: D102
        return self.left.params + self.right.params

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.left.dim * self.right.fmas + self.right.out_dim * self.left.fmas

    def forward(self, x: Array) -> Array:  # noqa: D102
        blocks = self.right.apply(x.reshape(*x.shape[:-1], self.left.dim, self.right.dim))
        across = self.left.apply(blocks.swapaxes(-1, -2)).swapaxes(-1, -2)
        return across.reshape(*x.shape[:-1], self.out_dim)


def kronecker(
    left: Transform | Float[Array, "m _"], right: Transform | Float[Array, "n _"]
) -> Kronecker:
    """kron(left, right) of two transforms, or of invertible matrices.

    FlatQuant learns such a product in front of each linear layer (Sun et al. 2025, arXiv
    2410.09426).

    Raises:
        ValueError: a matrix is not square.
    """
    return Kronecker(_transform("left", left), _transform("right", right))


def _transform(name: str, given: Transform | Array) -> Transform:
    if isinstance(given, Transform):
        return given
    if given.ndim != 2 or given.shape[0] != given.shape[1]:
        raise ValueError(f"{name} must be a transform or a square matrix, got {given.shape}.")
    return Oblique(given, jnp.linalg.inv(given))
