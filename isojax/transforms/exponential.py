"""Rotations with free parameters: the exponential of a skew-symmetric matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_positive
from isojax._core.pytree import pytree
from isojax.transforms.cayley import Skew, draw_free
from isojax.transforms.drawn import drawn


@pytree
class Exponential(Skew):
    """exp(A), which reaches every rotation; several times slower to form than `Cayley`.

    An eigenvalue i a of A turns its plane by a radians. See `Skew` for the parameters. The rounding
    of many squarings is undone by one `newton_schulz`.
    """

    def _rotation(self, a: Array) -> Array:
        with jax.default_matmul_precision("highest"):
            return newton_schulz(jax.scipy.linalg.expm(a))


@drawn("exponential")
def exponential(key: Key[Array, ""] | None, dim: int) -> Exponential:
    """The exponential of a random skew-symmetric matrix, or the identity.

    Entries are N(0, 1/dim), so that planes turn by up to 2 radians. To learn from another start,
    compose: `start @ exponential(None, start.out_dim)`.

    Args:
        key: draws the parameters; None for zeros, the identity.
        dim: length of the vectors.

    Raises:
        ValueError: `dim` is not a whole number of at least 1.
    """
    return Exponential(draw_free(key, check_positive("dim", dim)))


def newton_schulz(m: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """One step from a nearly orthogonal matrix to the nearest: M (3 I - M^T M) / 2.

    Singular values 1 + e become 1 - 3 e^2 / 2 (Higham, Functions of Matrices, 2008, section 8.3).
    """
    gram = jnp.matmul(m.swapaxes(-1, -2), m, precision="highest")
    return jnp.matmul(m, 1.5 * jnp.eye(m.shape[-1], dtype=m.dtype) - gram / 2, precision="highest")
