"""Randomised Hadamard transforms: a rotation of the whole vector in O(d log d)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_choice, check_positive
from isojax._core.pytree import pytree, static
from isojax.transforms.base import Transform
from isojax.transforms.paley import admissible_blocks, decompose, hadamard_factors


def fwht(x: Float[Array, "*batch d"], *, transposed: bool = False) -> Float[Array, "*batch d"]:
    """Normalised fast Hadamard transform of the last axis: `x @ H / sqrt(d)`.

    H is `paley.hadamard_matrix(d)`, a Kronecker product; each small factor is one matmul over the
    last axis, which then moves to the front, so that all axes end where they began.

    Args:
        x: vectors of any length d with a Hadamard matrix.
        transposed: use H^T. Only Paley I makes a difference; Sylvester and Paley II are symmetric.

    Raises:
        ValueError: no Hadamard matrix of order d (see `paley.decompose`).
    """
    *lead, d = x.shape
    for h in reversed(hadamard_factors(d)):
        h = jnp.asarray(h.T if transposed else h, x.dtype)
        x = jnp.matmul(x.reshape(*lead, d // len(h), len(h)), h, precision="highest").swapaxes(
            -1, -2
        )
    return x.reshape(*lead, d) / jnp.sqrt(d).astype(x.dtype)


@pytree
class Hadamard(Transform):
    """`(x * signs) @ H / sqrt(block)` on each block of `block` neighbours; or its inverse.

    Attributes:
        signs: +-1 for every coordinate, [d].
        block: order of H, a divisor of d.
        transposed: whether this is the inverse, `(x @ H^T / sqrt(block)) * signs`.
    """

    signs: Float[Array, "... d"]
    block: int = static()
    transposed: bool = static(default=False)

    @property
    def dim(self) -> int:  # noqa: D102
        return self.signs.shape[-1]

    @property
    def T(self) -> Hadamard:  # noqa: D102
        return Hadamard(self.signs, self.block, not self.transposed)

    @property
    def params(self) -> int:  # noqa: D102
        return self.dim

    @property
    def fmas(self) -> int:  # noqa: D102
        power, base = decompose(self.block)
        return self.dim * (power.bit_length() - 1 + (base if base > 1 else 0))

    def _apply(self, x: Array) -> Array:
        signs = self.signs.astype(x.dtype)
        v = x if self.transposed else x * signs
        v = v.reshape(*x.shape[:-1], self.dim // self.block, self.block)
        v = fwht(v, transposed=self.transposed).reshape(x.shape)
        return v * signs if self.transposed else v


def hadamard(key: Key[Array, ""] | None, dim: int) -> Hadamard:
    """Hadamard transform of the whole vector after random signs (Ailon and Chazelle 2006).

    Args:
        key: draws the signs; None for the plain Hadamard transform.
        dim: an order with a Hadamard matrix, such as 2^k times 1, 12, 20, 28, 36, 44, 52, 60.

    Raises:
        ValueError: `dim` is no such order; the message names the blocks that work.
    """
    decompose(dim)
    return block_hadamard(key, dim, dim)


def block_hadamard(key: Key[Array, ""] | None, dim: int, block: int) -> Hadamard:
    """The same Hadamard on every block of `block` neighbours, after random signs.

    Args:
        key: draws the `dim` signs; None for none.
        dim: length of the vectors.
        block: a divisor of `dim` with a Hadamard matrix.

    Raises:
        ValueError: `block` is no such divisor; the message names those that work.
    """
    dim = check_positive("dim", dim)
    check_choice("block", block, admissible_blocks(dim))
    if key is None:
        return Hadamard(jnp.ones(dim, jnp.float32), block)
    return Hadamard(jax.random.rademacher(key, (dim,), jnp.float32), block)
