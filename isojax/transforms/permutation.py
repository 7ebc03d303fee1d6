"""Permutations of the coordinates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from isojax._core.checks import check_positive
from isojax._core.pytree import pytree
from isojax.transforms.base import Transform
from isojax.transforms.drawn import drawn


@pytree
class Permutation(Transform):
    """`x[..., indices]`: coordinate i of the result is coordinate `indices[i]` of `x`.

    Attributes:
        indices: each of 0 to d - 1 once, [d]; not checked.
    """

    indices: Int[Array, "... d"]

    @property
    def dim(self) -> int:  # noqa: D102
        return self.indices.shape[-1]

    @property
    def T(self) -> Permutation:  # noqa: D102
        return Permutation(jnp.argsort(self.indices, axis=-1))

    @property
    def params(self) -> int:  # noqa: D102
        return self.dim

    @property
    def fmas(self) -> int:  # noqa: D102
        return 0

    def forward(self, x: Array) -> Array:  # noqa: D102
        return x[..., self.indices]


@drawn("random_permutation")
def permutation(key: Key[Array, ""], dim: int) -> Permutation:
    """A uniformly random permutation.

    Raises:
        ValueError: `dim` is not a whole number of at least 1.
    """
    return Permutation(jax.random.permutation(key, check_positive("dim", dim)))
