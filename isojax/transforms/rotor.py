"""Rotors: rotations of blocks of three (RotorQuant, J. Pope 2026)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_divides, check_positive
from isojax._core.pytree import pytree
from isojax.transforms.base import Transform
from isojax.transforms.block_diagonal import block_product
from isojax.transforms.drawn import drawn
from isojax.transforms.quaternion import conjugate, sandwich


@pytree
class Rotor(Transform):
    """Turns each block v of three neighbours: v -> q v conj(q), v taken as x i + y j + z k.

    The rotor sandwich R v R~ of the geometric algebra Cl(3,0), which maps vectors to vectors. Each
    block has 4 parameters and counts 56 FMAs, those of the published multivector form; the 3 x 3
    matrices used here take 9.

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

    def forward(self, x: Array) -> Array:  # noqa: D102
        return self._resized(x, self.dim)

    def _resized(self, x: Array, size: int) -> Array:
        # a shortened last block in place of padding and cropping, which would slow down the loop
        pad = self.dim - min(x.shape[-1], size)
        if pad >= 3:
            return super()._resized(x, size)
        spinor = self.spinor.astype(x.dtype)
        return block_product(x, sandwich(spinor, spinor)[1:, 1:], size)


@drawn("rotor", multiple=3)
def rotor(key: Key[Array, ""], dim: int) -> Rotor:
    """Haar-random rotations in three dimensions: Gaussian spinors.

    Raises:
        ValueError: `dim` is not a multiple of 3 (see `padded`).
    """
    check_divides("block", 3, "dim", check_positive("dim", dim))
    return Rotor(jax.random.normal(key, (dim // 3, 4), jnp.float32))
