"""Butterflies: small rotations at growing strides, which rotate the whole vector in O(d log d)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from isojax._core.checks import check_choice, check_divides, check_positive
from isojax._core.pytree import pytree, static
from isojax.transforms.base import Transform, Wrapped, chained
from isojax.transforms.block_diagonal import block_diagonal
from isojax.transforms.cayley import Cayley, cayley
from isojax.transforms.drawn import drawn
from isojax.transforms.planar import Planar, planar
from isojax.transforms.quaternion import Quaternion, quaternion

RADIX = {"planar": 2, "quaternion": 4}


@pytree
class Strided(Wrapped):
    """`inner` on blocks of coordinates at a distance of `stride` in place of neighbours.

    Attributes:
        inner: a transform of blocks of neighbours, square.
        block: length of its blocks.
        stride: distance of the coordinates of a block.
    """

    inner: Transform
    block: int = static()
    stride: int = static()

    @property
    def dim(self) -> int:  # noqa: D102
        return self.inner.dim

    @property
    def T(self) -> Strided:  # noqa: D102
        return Strided(self.inner.T, self.block, self.stride)

    @property
    def inverse(self) -> Strided:  # noqa: D102
        return Strided(self.inner.inverse, self.block, self.stride)

    def forward(self, x: Array) -> Array:  # noqa: D102
        count = self.dim // (self.block * self.stride)
        v = x.reshape(*x.shape[:-1], count, self.block, self.stride).swapaxes(-1, -2)
        y = self.inner.apply(v.reshape(x.shape)).reshape(v.shape)
        return y.swapaxes(-1, -2).reshape(x.shape)


def strided(inner: Transform, block: int, stride: int) -> Strided:
    """`inner`, a transform of blocks of `block` neighbours, at a distance of `stride`.

    Example:
        >>> strided(planar(key, 8), 2, 4)  # turns coordinates 0 and 4, 1 and 5, 2 and 6, 3 and 7

    Raises:
        ValueError: `block * stride` does not divide the length, or `inner` changes it.
    """
    check_choice("inner.out_dim", inner.out_dim, [inner.dim])
    span = check_positive("block", block) * check_positive("stride", stride)
    check_divides("block * stride", span, "inner.dim", inner.dim)
    return Strided(inner, int(block), int(stride))


def butterfly(key: Key[Array, ""] | None, dim: int, form: str = "planar") -> Transform:
    """Layers of small rotations, each at the stride at which the blocks before it end.

    Every coordinate reaches every other, as in the fast Fourier transform (Dao et al. 2019, arXiv
    1903.05895, there not orthogonal). Strides are 1, 2, 4, ... for `planar`, Givens rotations of
    pairs; 1, 4, 16, ... for `quaternion`, all of SO(4), with a last planar layer where `dim` needs
    one. An odd prime factor p of `dim` has a last layer of p x p Cayley blocks. For a power of two,
    `planar` has d log2 d parameters and 2 d log2 d FMAs, `quaternion` twice as many FMAs.

    Args:
        key: draws the parameters, Haar-random pairs and quaternions; None for the identity, from
            which to learn: `start @ butterfly(None, start.out_dim)`.
        dim: length of the vectors.
        form: `planar` or `quaternion`.

    Raises:
        ValueError: `dim` is not a whole number of at least 1, or `form` is neither.
    """
    radices = _radices(check_positive("dim", dim), RADIX[check_choice("form", form, RADIX)])
    keys = [None] * len(radices) if key is None else jax.random.split(key, len(radices))
    layers, stride = [], 1
    for part, radix in zip(keys, radices, strict=True):
        layers.append(Strided(_layer(part, dim, radix), radix, stride))
        stride *= radix
    return chained(dim, layers)


def _radices(dim: int, largest: int) -> list[int]:
    """Factors of `dim`: `largest` as often as it divides, then primes."""
    radices = []
    for radix in (largest, *range(2, dim + 1)):
        while dim % radix == 0:
            radices.append(radix)
            dim //= radix
    return radices


def _layer(key: Array | None, dim: int, radix: int) -> Transform:
    count = dim // radix
    if radix > 2 and radix != 4:
        if key is None:
            return block_diagonal(Cayley(jnp.zeros((count, radix * (radix - 1) // 2), jnp.float32)))
        return block_diagonal(jax.vmap(lambda k: cayley(k, radix))(jax.random.split(key, count)))
    if key is not None:
        return planar(key, dim) if radix == 2 else quaternion(key, dim)
    one = jnp.zeros((count, radix), jnp.float32).at[:, 0].set(1)
    return Planar(one) if radix == 2 else Quaternion(one, one)


@drawn("butterfly_planar")
def _planar(key: Key[Array, ""], dim: int) -> Transform:
    return butterfly(key, dim, form="planar")


@drawn("butterfly_quaternion")
def _quaternion(key: Key[Array, ""], dim: int) -> Transform:
    return butterfly(key, dim, form="quaternion")
