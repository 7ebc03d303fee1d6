"""Planar rotations: a Givens rotation of each pair of neighbours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax._core.axes import to_rank
from isojax._core.checks import check_divides, check_positive
from isojax._core.pytree import pytree
from isojax.transforms.base import Transform
from isojax.transforms.drawn import drawn
from isojax.transforms.quaternion import conjugate, normalize


@pytree
class Planar(Transform):
    """Turns each pair (2i, 2i + 1) by its angle: (a, b) -> (c a - s b, s a + c b).

    Two parameters and 4 FMAs per pair (IsoQuant, arXiv 2603.28430, 2D form). Parameters are
    unconstrained, as for `Quaternion`: (c, s) = u / |u| is computed inside. This costs a loop over
    vectors little, where a cosine and a sine would be computed again for every vector.

    Attributes:
        phasor: u of (c, s) = (cos, sin) of the angle, [d / 2, 2].
    """

    phasor: Float[Array, "*batch n 2"]

    @property
    def dim(self) -> int:  # noqa: D102
        return 2 * self.phasor.shape[-2]

    @property
    def T(self) -> Planar:  # noqa: D102
        return Planar(conjugate(self.phasor))

    @property
    def params(self) -> int:  # noqa: D102
        return self.dim

    @property
    def fmas(self) -> int:  # noqa: D102
        return 2 * self.dim

    def forward(self, x: Array) -> Array:  # noqa: D102
        unit = normalize(self.phasor.astype(x.dtype))
        c, s = (to_rank(unit[..., i], x.ndim) for i in range(2))
        v = x.reshape(*x.shape[:-1], self.dim // 2, 2)
        a, b = v[..., 0], v[..., 1]
        return jnp.stack([c * a - s * b, s * a + c * b], axis=-1).reshape(x.shape)


@drawn("planar", multiple=2)
def planar(key: Key[Array, ""], dim: int) -> Planar:
    """Haar-random rotations of the plane: Gaussian parameters, hence uniform angles.

    Raises:
        ValueError: `dim` is not a multiple of 2 (see `padded`).
    """
    check_divides("block", 2, "dim", check_positive("dim", dim))
    return Planar(jax.random.normal(key, (dim // 2, 2), jnp.float32))
