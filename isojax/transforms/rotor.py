"""Rotors: rotations of blocks of three (RotorQuant, J. Pope 2026)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_divides, check_positive
from isojax._core.pytree import pytree
from isojax.transforms.base import Transform
from isojax.transforms.quaternion import conjugate, normalize


@pytree
class Rotor(Transform):
    """Turns each block v of three neighbours: v -> q v conj(q), v taken as x i + y j + z k.

    The rotor sandwich R v R~ of the geometric algebra Cl(3,0), which maps vectors to vectors: three
    numbers in, three out. A block stores 4 numbers and counts 56 FMAs, those of the published
    multivector form; the cross products used here take 18, a ready 3 x 3 matrix 9.

    Attributes:
        spinor: u of q = u / |u|, [d / 3, 4], components (w, x, y, z).
    """

    spinor: Float[Array, "... n 4"]

    @property
    def dim(self) -> int:  # noqa: D102
        return 3 * self.spinor.shape[-2]

    @property
    def T(self) -> Rotor:  # noqa: D102
        return Rotor(conjugate(self.spinor))

    @property
    def params(self) -> int:  # noqa: D102
        return 4 * (self.dim // 3)

    @property
    def fmas(self) -> int:  # noqa: D102
        return 56 * (self.dim // 3)

    def _apply(self, x: Array) -> Array:
        v = x.reshape(*x.shape[:-1], self.dim // 3, 3)
        q = normalize(self.spinor.astype(x.dtype))
        w, u = q[..., :1], q[..., 1:]
        c = 2 * jnp.cross(u, v)
        return (v + w * c + jnp.cross(u, c)).reshape(x.shape)


def rotor(key: Key[Array, ""], dim: int) -> Rotor:
    """Haar-random rotations in three dimensions: Gaussian spinors.

    Raises:
        ValueError: `dim` is not a multiple of 3 (see `padded`).
    """
    check_divides("block", 3, "dim", check_positive("dim", dim))
    return Rotor(jax.random.normal(key, (dim // 3, 4), jnp.float32))
