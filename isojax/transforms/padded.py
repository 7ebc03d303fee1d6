"""Zero padding, for lengths that a block does not divide."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from isojax._core.checks import check_positive
from isojax._core.pytree import pytree, static
from isojax.transforms.base import Transform


@pytree
class Padded(Transform):
    """Appends zeros up to `inner.dim`, then applies `inner`: an isometry into a longer space.

    `t.T.apply(t.apply(x)) == x` holds; the other order is the projection on the range.

    Attributes:
        inner: transform of the padded vector.
        size: length of the vectors before padding.
    """

    inner: Transform
    size: int = static()

    @property
    def dim(self) -> int:  # noqa: D102
        return self.size

    @property
    def out_dim(self) -> int:  # noqa: D102
        return self.inner.out_dim

    @property
    def T(self) -> Cropped:  # noqa: D102
        return Cropped(self.inner.T, self.size)

    @property
    def params(self) -> int:  # noqa: D102
        return self.inner.params

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.inner.fmas

    def _apply(self, x: Array) -> Array:
        pads = [(0, 0)] * (x.ndim - 1) + [(0, self.inner.dim - self.size)]
        return self.inner.apply(jnp.pad(x, pads))


@pytree
class Cropped(Transform):
    """Applies `inner`, then keeps the first `size` numbers: the adjoint of `Padded`.

    Attributes:
        inner: transform of the whole vector.
        size: length of the result.
    """

    inner: Transform
    size: int = static()

    @property
    def dim(self) -> int:  # noqa: D102
        return self.inner.dim

    @property
    def out_dim(self) -> int:  # noqa: D102
        return self.size

    @property
    def T(self) -> Padded:  # noqa: D102
        return Padded(self.inner.T, self.size)

    @property
    def params(self) -> int:  # noqa: D102
        return self.inner.params

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.inner.fmas

    def _apply(self, x: Array) -> Array:
        return self.inner.apply(x)[..., : self.size]


def padded(inner: Transform, size: int) -> Padded:
    """`inner` for vectors of length `size`, padded with zeros to `inner.dim`.

    Raises:
        ValueError: `size` is not between 1 and `inner.dim`.
    """
    size = check_positive("size", size)
    if size > inner.dim:
        raise ValueError(f"size must be at most inner.dim={inner.dim}, got {size}.")
    return Padded(inner, size)
