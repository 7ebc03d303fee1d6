"""Diagonal scaling: one factor per coordinate."""

from __future__ import annotations

from jaxtyping import Array, Float

from isojax._core.axes import to_rank
from isojax._core.pytree import pytree
from isojax.transforms.base import Transform


@pytree
class Diagonal(Transform):
    """`x * entries`; its own transpose, and no isometry.

    Attributes:
        entries: of the diagonal, [d], none of them zero; not checked.
    """

    entries: Float[Array, "... d"]

    @property
    def dim(self) -> int:  # noqa: D102
        return self.entries.shape[-1]

    @property
    def T(self) -> Diagonal:  # noqa: D102
        return self

    @property
    def isometry(self) -> bool:  # noqa: D102
        return False

    @property
    def inverse(self) -> Diagonal:  # noqa: D102
        return Diagonal(1 / self.entries)

    @property
    def params(self) -> int:  # noqa: D102
        return self.dim

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.dim

    def forward(self, x: Array) -> Array:  # noqa: D102
        return x * to_rank(self.entries.astype(x.dtype), x.ndim)
