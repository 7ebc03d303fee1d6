"""Quaternion rotations of blocks of four (IsoQuant, arXiv 2603.28430).

A quaternion is four numbers (w, x, y, z) = w + x i + y j + z k on a last axis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from isojax._core.axes import to_rank
from isojax._core.checks import check_choice, check_divides, check_positive
from isojax._core.finite import power_of_two
from isojax._core.pytree import pytree
from isojax.transforms.base import Transform
from isojax.transforms.block_diagonal import block_product
from isojax.transforms.drawn import drawn

# PRODUCT[i, j] is the product e_i e_j of two of 1, i, j, k; _SIGNS conjugates.
_SIGNS = np.array([1, -1, -1, -1], np.float32)
PRODUCT = np.zeros((4, 4, 4), np.float32)
for _i, _j, _k in ((1, 2, 3), (2, 3, 1), (3, 1, 2)):
    PRODUCT[0, _i, _i] = PRODUCT[_i, 0, _i] = PRODUCT[_i, _j, _k] = 1
    PRODUCT[_j, _i, _k] = PRODUCT[_i, _i, 0] = -1
PRODUCT[0, 0, 0] = 1
SANDWICH = np.einsum("ijm,mkl,k->jlik", PRODUCT, PRODUCT, _SIGNS)  # e_i e_j conj(e_k)


def hamilton(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "... 4"]:
    """The product of quaternions a b; leading axes broadcast."""
    rank = max(a.ndim, b.ndim) - 1
    aw, ax, ay, az = (to_rank(a[..., i], rank) for i in range(4))
    bw, bx, by, bz = (to_rank(b[..., i], rank) for i in range(4))
    return jnp.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def conjugate(q: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """(w, -x, -y, -z), or (c, -s) of a complex number: the inverse of a unit one."""
    signs = jnp.array(_SIGNS[: q.shape[-1]], q.dtype)
    return q * to_rank(signs, q.ndim)


def normalize(u: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """The unit quaternion, or complex number, u / |u|; at u = 0 it is 1, with gradient zero."""
    one = to_rank(jnp.array(np.eye(u.shape[-1])[0], u.dtype), u.ndim)
    peak = jnp.max(jnp.abs(u), -1, keepdims=True)
    u = jnp.where(peak == 0, one, u / power_of_two(peak))  # so that squares stay in range
    return u / jnp.sqrt((u * u).sum(-1, keepdims=True))


def sandwich(left: Float[Array, "n 4"], right: Float[Array, "n 4"]) -> Float[Array, "4 4 n"]:
    """The matrices M with v M = qL v conj(qR), q = u / |u|, one per last index.

    As a matrix product, which `block_product` keeps out of its loop.
    """
    pairs = normalize(left)[:, :, None] * normalize(right)[:, None, :]
    return jnp.einsum("jlik,nik->jln", SANDWICH.astype(left.dtype), pairs, precision="highest")


@pytree
class Quaternion(Transform):
    """Turns each block v of four neighbours: v -> qL v conj(qR), or v -> qL v without `right`.

    The full form reaches all of SO(4), the fast form one of its two factors. Parameters are
    unconstrained: q = u / |u| is computed inside. (qL, qR) and (-qL, -qR) are the same rotation.
    The full form has 8 parameters and 32 FMAs per block, the fast form 4 and 16.

    Attributes:
        left: u of qL, [d / 4, 4], components (w, x, y, z).
        right: u of qR, like `left`, or None for the fast form.
    """

    left: Float[Array, "*batch n 4"]
    right: Float[Array, "*batch n 4"] | None = None

    @property
    def dim(self) -> int:  # noqa: D102
        return 4 * self.left.shape[-2]

    @property
    def T(self) -> Quaternion:  # noqa: D102
        right = None if self.right is None else conjugate(self.right)
        return Quaternion(conjugate(self.left), right)

    @property
    def params(self) -> int:  # noqa: D102
        return self.dim if self.right is None else 2 * self.dim

    @property
    def fmas(self) -> int:  # noqa: D102
        return 4 * self.params

    def forward(self, x: Array) -> Array:  # noqa: D102
        left = self.left.astype(x.dtype)
        if self.right is not None:
            return block_product(x, sandwich(left, self.right.astype(x.dtype)))
        v = x.reshape(*x.shape[:-1], self.dim // 4, 4)
        return hamilton(normalize(left), v).reshape(x.shape)


def quaternion(key: Key[Array, ""], dim: int, form: str = "full") -> Quaternion:
    """Haar-random quaternions: Gaussian parameters, hence uniform on the unit sphere.

    Args:
        key: draws the parameters.
        dim: a multiple of 4.
        form: "full" for v -> qL v conj(qR), "fast" for v -> qL v.

    Raises:
        ValueError: `dim` is not a multiple of 4 (see `padded`), or `form` is neither.
    """
    check_divides("block", 4, "dim", check_positive("dim", dim))
    sides = {"full": 2, "fast": 1}
    check_choice("form", form, sides)
    return Quaternion(*jax.random.normal(key, (sides[form], dim // 4, 4), jnp.float32))


@drawn("quaternion_fast", multiple=4)
def _fast(key: Key[Array, ""], dim: int) -> Quaternion:
    return quaternion(key, dim, form="fast")


@drawn("quaternion_full", multiple=4)
def _full(key: Key[Array, ""], dim: int) -> Quaternion:
    return quaternion(key, dim, form="full")
