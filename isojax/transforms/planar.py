"""Planar rotations: a Givens rotation of each pair of neighbours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_divides, check_positive
from isojax._core.pytree import pytree
from isojax.transforms.base import Transform


@pytree
class Planar(Transform):
    """Turns each pair (2i, 2i + 1) by its angle: (a, b) -> (c a - s b, s a + c b).

    Two stored numbers (cos, sin) and 4 FMAs a pair (IsoQuant, arXiv 2603.28430, 2D form).

    Attributes:
        angle: radians, [d / 2].
    """

    angle: Float[Array, "... n"]

    @property
    def dim(self) -> int:  # noqa: D102
        return 2 * self.angle.shape[-1]

    @property
    def T(self) -> Planar:  # noqa: D102
        return Planar(-self.angle)

    @property
    def params(self) -> int:  # noqa: D102
        return self.dim

    @property
    def fmas(self) -> int:  # noqa: D102
        return 2 * self.dim

    def _apply(self, x: Array) -> Array:
        a, b = x[..., 0::2], x[..., 1::2]
        angle = self.angle.astype(x.dtype)
        c, s = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([c * a - s * b, s * a + c * b], axis=-1).reshape(x.shape)


def planar(key: Key[Array, ""], dim: int) -> Planar:
    """Haar-random rotations of the plane: angles uniform on [-pi, pi).

    Raises:
        ValueError: `dim` is not a multiple of 2 (see `padded`).
    """
    check_divides("block", 2, "dim", check_positive("dim", dim))
    return Planar(jax.random.uniform(key, (dim // 2,), jnp.float32, -jnp.pi, jnp.pi))
