"""Rotations with free parameters: the Cayley transform of a skew-symmetric matrix."""

from __future__ import annotations

import abc
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_positive
from isojax._core.pytree import pytree
from isojax.transforms.base import Transform
from isojax.transforms.drawn import drawn


def skew(free: Float[Array, "... n"]) -> Float[Array, "... d d"]:
    """The skew-symmetric matrix with the elements `free` below its diagonal, row by row."""
    count = free.shape[-1]
    dim = _order(count)
    place = np.zeros((dim, dim), int)
    place[np.tril_indices(dim, -1)] = np.arange(1, count + 1)
    place += np.where(place.T > 0, place.T + count, 0)
    zero = jnp.zeros_like(free, shape=(*free.shape[:-1], 1))
    return jnp.concatenate([zero, free, -free], -1)[..., place]


def _order(count: int) -> int:
    """The order of a skew-symmetric matrix with `count` elements below its diagonal."""
    return math.isqrt(2 * count) + 1


@pytree
class Skew(Transform):
    """A rotation made of a skew-symmetric matrix A, so that -A gives its inverse.

    It is orthogonal for all parameters, so unconstrained optimizers can learn them. Zeros are the
    identity. Forming the matrix takes O(d^3), which `fmas` does not count.

    Attributes:
        free: the d (d - 1) / 2 elements below the diagonal of A, row by row.
    """

    free: Float[Array, "... n"]

    @abc.abstractmethod
    def _rotation(self, a: Array) -> Array:
        """The orthogonal matrix of A."""

    @property
    def dim(self) -> int:  # noqa: D102
        return _order(self.params)

    @property
    def T(self) -> Skew:  # noqa: D102
        return type(self)(-self.free)

    @property
    def params(self) -> int:  # noqa: D102
        return self.free.shape[-1]

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.dim**2

    def forward(self, x: Array) -> Array:  # noqa: D102
        rotation = self._rotation(skew(self.free.astype(x.dtype)))
        return jnp.matmul(x, rotation, precision="highest")


@pytree
class Cayley(Skew):
    """(I - A)(I + A)^-1, by one linear solve; reaches every rotation without half turns.

    An eigenvalue i a of A turns its plane by 2 arctan a. See `Skew` for the parameters.
    """

    def _rotation(self, a: Array) -> Array:
        return _cayley(a)


@drawn("cayley")
def cayley(key: Key[Array, ""] | None, dim: int) -> Cayley:
    """The Cayley transform of a random skew-symmetric matrix, or the identity.

    Entries are N(0, 1/dim), so that planes turn by up to 2 arctan 2 = 127 degrees. To learn from
    another start, compose: `start @ cayley(None, start.out_dim)`.

    Args:
        key: draws the parameters; None for zeros, the identity.
        dim: length of the vectors.

    Raises:
        ValueError: `dim` is not a whole number of at least 1.
    """
    return Cayley(draw_free(key, check_positive("dim", dim)))


def draw_free(key: Key[Array, ""] | None, dim: int) -> Float[Array, "n"]:
    """The parameters of a `Skew`: N(0, 1/dim), or zeros without a key."""
    shape = (dim * (dim - 1) // 2,)
    if key is None:
        return jnp.zeros(shape, jnp.float32)
    return jax.random.normal(key, shape, jnp.float32) / math.sqrt(dim)


@jax.custom_jvp
def _cayley(a: Array) -> Array:
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    return 2 * jnp.linalg.inv(eye + a) - eye


@_cayley.defjvp
def _cayley_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The derivative in matrix products, without a second solve: -(I + M) dA (I + M) / 2."""
    rotation = _cayley(*primals)
    twice = rotation + jnp.eye(rotation.shape[-1], dtype=rotation.dtype)
    left = jnp.matmul(twice, tangents[0], precision="highest")
    return rotation, -jnp.matmul(left, twice, precision="highest") / 2
