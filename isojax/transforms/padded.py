"""Zero padding, for lengths that a block does not divide."""

from __future__ import annotations

from jaxtyping import Array

from isojax._core.checks import check_positive
from isojax._core.pytree import pytree, static
from isojax.transforms.base import Transform, Wrapped


@pytree
class Padded(Wrapped):
    """Appends zeros up to `inner.dim`, then applies `inner`; or applies `inner`, then crops.

    The padded form has a left inverse, the cropped form: `t.inverse.apply(t.apply(x)) == x`, and
    the other order is a projection onto the range. The cropped form is no isometry.

    Attributes:
        inner: transform of the longer vector.
        size: length of the shorter vector.
        cropped: whether `inner` acts first, and the first `size` elements of its result are kept.
    """

    inner: Transform
    size: int = static()
    cropped: bool = static(default=False)

    @property
    def dim(self) -> int:  # noqa: D102
        return self.inner.dim if self.cropped else self.size

    @property
    def out_dim(self) -> int:  # noqa: D102
        return self.size if self.cropped else self.inner.out_dim

    @property
    def T(self) -> Padded:  # noqa: D102
        return Padded(self.inner.T, self.size, not self.cropped)

    @property
    def isometry(self) -> bool:  # noqa: D102
        return self.inner.isometry and not self.cropped

    @property
    def inverse(self) -> Padded:  # noqa: D102
        return Padded(self.inner.inverse, self.size, not self.cropped)

    def forward(self, x: Array) -> Array:  # noqa: D102
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
