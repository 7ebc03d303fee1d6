"""Zero padding, for lengths that a block does not divide."""

from __future__ import annotations

from jaxtyping import Array

from isojax._core.checks import check_positive
from isojax._core.pytree import pytree, static
from isojax.transforms.base import Transform, Wrapped


@pytree
class Padded(Wrapped):
    """Appends zeros up to `inner.dim`, then applies `inner`; or its adjoint, which crops.

    An isometry into a longer space: `t.T.apply(t.apply(x)) == x` holds, and the other order is
    the projection on the range.

    Attributes:
        inner: transform of the longer vector.
        size: length of the shorter vector.
        transposed: whether this is the adjoint: `inner`, then the first `size` numbers.
    """

    inner: Transform
    size: int = static()
    transposed: bool = static(default=False)

    @property
    def dim(self) -> int:  # noqa: D102
        return self.inner.dim if self.transposed else self.size

    @property
    def out_dim(self) -> int:  # noqa: D102
        return self.size if self.transposed else self.inner.out_dim

    @property
    def T(self) -> Padded:  # noqa: D102
        return Padded(self.inner.T, self.size, not self.transposed)

    def _apply(self, x: Array) -> Array:
        return self.inner._resized(x, self.out_dim)


def padded(inner: Transform, size: int) -> Padded:
    """`inner` for vectors of length `size`, padded with zeros to `inner.dim`.

    Raises:
        ValueError: `size` is not between 1 and `inner.dim`.
    """
    size = check_positive("size", size)
    if size > inner.dim:
        raise ValueError(f"size must be at most inner.dim={inner.dim}, got {size}.")
    return Padded(inner, size)
